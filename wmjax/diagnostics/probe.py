"""Ridge probes of any features of frames on held-out episodes. Needs numpy only.

Targets are the end-effector position (m), the gripper opening (m) and, if the stores have them, object positions (m).
All rows of a table go through the same standardisation, ridge path and split by episode; pixels pooled to 8 x 8 are
the lower reference.
"""

import functools
import logging
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from wmjax.analysis.ridge import ridge_r2, token_rank
from wmjax.core.errors import UserError
from wmjax.data.split import recording_of, split_episodes
from wmjax.data.store import TrainingStore

log = logging.getLogger("wmjax.probe")

Frames = UInt8[np.ndarray, "frames cameras height width 3"]
Features = Callable[[Frames, str], dict[str, Float[np.ndarray, "frames tokens dim"]]]
"""Features of an episode's frames, given its instruction, by the name of their row in the table."""
Table = dict[str, dict[str, float]]
"""Numbers by row and column."""
PIXELS = 8
"""Images are pooled to so many cells a side."""
FITTED = 4
"""Episodes that a ridge regression is fitted on, at least: one of four chooses its strength."""
MANY = 8
"""More objects than this are shown by their summary only."""
FALLEN = 0.1
"""An object this far (m) below where its task's objects of that name usually are has fallen out of the picture."""


def find_camera(stores: Sequence[TrainingStore], camera: str | None) -> int:
    """Index of a camera, the first if none is named, in the frames of stores that can be probed together.

    Raises:
        UserError: a store without the camera, or with other cameras or image sizes than the first.

    """
    first = stores[0].spec
    camera = camera or first.cameras[0]
    for store in stores:
        if camera not in store.spec.cameras:
            raise UserError(f"camera {camera!r} is not in {store.folder}; choose from {', '.join(store.spec.cameras)}")
        for field in ("cameras", "image_size"):
            mine, theirs = getattr(store.spec, field), getattr(first, field)
            if mine != theirs:
                raise UserError(
                    f"{field} is {mine} in {store.folder}, {theirs} in {stores[0].folder}; probe them apart"
                )
    if first.image_size % PIXELS:
        raise UserError(f"image_size is {first.image_size} in {stores[0].folder}; give a multiple of {PIXELS} pixels")
    return first.cameras.index(camera)


def probe(stores: Sequence[TrainingStore], camera: int, kinds: Sequence[Features]) -> Table:
    """R^2 per target and object and effective rank, for pooled pixels of a camera and for every kind of features.

    Raises:
        UserError: too few episodes to fit and to score.

    """
    groups, train = _split(stores)
    states = [targets_of(store) for store in stores]
    targets = {key: np.concatenate([s[key] for s in states]) for key in states[0]}
    objects = objects_of(stores)
    table: Table = {}
    floor: Features = functools.partial(pooled_pixels, camera)
    for features in (floor, *kinds):
        for name, tokens in features_of(stores, features).items():
            log.info("probing %s, %d features of %d frames", name, tokens[0].size, len(tokens))
            x = tokens.reshape(len(tokens), -1)
            table[name] = ridge_r2(x, targets, train, groups) | object_scores(x, objects, train, groups)
            table[name]["effective rank"] = token_rank(tokens)
    return table


def pooled_pixels(camera: int, frames: Frames, instruction: str) -> dict[str, Float[np.ndarray, "frames 1 dim"]]:
    """The frame averaged to 8 x 8 x 3: the baseline of the probes."""
    images = frames[:, camera].astype(np.float32) / 255
    n, height, width, _ = images.shape
    cells = images.reshape(n, PIXELS, height // PIXELS, PIXELS, width // PIXELS, 3).mean(axis=(2, 4))
    return {f"pixels {PIXELS}x{PIXELS}": cells.reshape(n, 1, -1)}


def features_of(
    stores: Sequence[TrainingStore], features: Features
) -> dict[str, Float[np.ndarray, "frames tokens dim"]]:
    """Features of every frame of all stores, in their order."""
    parts: dict[str, list[np.ndarray]] = {}
    for store in stores:
        for entry in store.episodes:
            frames = np.array(store.frames[entry["frame_start"] : entry["frame_start"] + entry["num_frames"]])
            for name, found in features(frames, entry["instruction"]).items():
                parts.setdefault(name, []).append(found)
    return {name: np.concatenate(found) for name, found in parts.items()}


def targets_of(store: TrainingStore) -> dict[str, Float[np.ndarray, "frames dim"]]:
    """The targets at every frame: hand and gripper, or the whole state if the spec does not name their values."""
    state, spec = store.state[store.frame_row].astype(np.float64), store.spec
    targets = {"eef xyz": state[:, list(spec.position)]} if spec.position else {}
    if spec.fingers:
        one, other = spec.fingers
        targets["gripper"] = (state[:, one] - state[:, other])[:, None]
    return targets or {"state": state}


def objects_of(stores: Sequence[TrainingStore]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Rows and positions (xy, m) of every object that is present in at least six episodes.

    Rows in which it has fallen off the table are left out: no encoder can see it there, and squared errors of half
    a metre would hide the centimetres that matter.
    """
    rows: dict[str, list[int]] = {}
    places: dict[str, list[list[float]]] = {}
    episodes: dict[str, int] = {}
    offset = 0
    for store in stores:
        heights: dict[tuple[str, int, str], list[float]] = {}
        for entry in store.episodes:
            for name, track in entry.get("objects", {}).items():
                heights.setdefault((entry["suite"], entry["task_id"], name), []).extend(place[2] for place in track)
        usual = {key: float(np.median(values)) for key, values in heights.items()}
        for entry in store.episodes:
            for name, track in entry.get("objects", {}).items():
                lowest = usual[entry["suite"], entry["task_id"], name] - FALLEN
                visible = [i for i, place in enumerate(track) if place[2] > lowest]
                rows.setdefault(name, []).extend(offset + entry["frame_start"] + i for i in visible)
                places.setdefault(name, []).extend(track[i][:2] for i in visible)
                episodes[name] = episodes.get(name, 0) + bool(visible)
        offset += len(store.frame_step)
    return {name: (np.array(rows[name]), np.array(places[name])) for name in sorted(rows) if episodes[name] >= 6}


def object_scores(
    x: Float[np.ndarray, "rows features"],
    objects: dict[str, tuple[np.ndarray, np.ndarray]],
    train: Bool[np.ndarray, " rows"],
    groups: Int[np.ndarray, " rows"],
) -> dict[str, float]:
    """R^2 of every object's position on the rows outside ``train``, then over all of them together and their median.

    Together: the share of the summed squared deviations (m^2) that is explained, so that an object counts by how
    far it is moved about; the median counts alike those that hardly ever move.
    """
    together: dict[bytes, list[str]] = {}  # one decomposition serves all objects that are seen in the same rows
    for name, (rows, _) in objects.items():
        if len(np.unique(groups[rows][train[rows]])) >= FITTED and not train[rows].all():
            together.setdefault(rows.tobytes(), []).append(name)
    scores: dict[str, float] = {}
    weights: list[float] = []
    for names in together.values():
        rows = objects[names[0]][0]
        training, places = train[rows], {f"xy {name}": objects[name][1] for name in names}
        scores |= ridge_r2(x[rows], places, training, groups[rows])
        weights += [((xy[~training] - xy[training].mean(0)) ** 2).sum() for xy in places.values()]
    if not scores:
        return {}
    values = list(scores.values())
    overall = float(np.average(values, weights=weights))
    return scores | {"objects xy": overall, "objects xy (median)": float(np.median(values))}


def _split(stores: Sequence[TrainingStore]) -> tuple[Int[np.ndarray, " frames"], Bool[np.ndarray, " frames"]]:
    """Recorded episode of every frame (unique over the stores), and whether it is used for fitting.

    Raises:
        UserError: too few episodes to fit and to score.

    """
    groups, train, offset = [], [], 0
    for store in stores:
        chosen, _ = split_episodes(store.episodes, 0.25, 0)
        groups.append(recording_of(store.episodes)[store.frame_episode] + offset)
        train.append(np.isin(store.frame_episode, chosen))
        offset += len(store.episodes)
    episode, training = np.concatenate(groups), np.concatenate(train)
    fitted, scored = (len(np.unique(episode[side])) for side in (training, ~training))
    if fitted < FITTED or not scored:
        raise UserError(
            f"{stores[0].folder}: {fitted} episodes to fit and {scored} to score; probes need at least {FITTED} and 1, "
            "record more episodes of a task"
        )
    return episode, training


def format_table(table: Table) -> str:
    """The table as Markdown; single objects only if they are few."""
    columns = list(dict.fromkeys(key for row in table.values() for key in row))
    if sum(key.startswith("xy ") for key in columns) > MANY:
        columns = [key for key in columns if not key.startswith("xy ")]
    lines = ["| features | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, row in table.items():
        lines.append(f"| {name} | " + " | ".join(f"{row[c]:.3f}" if c in row else "-" for c in columns) + " |")
    return "\n".join(lines)
