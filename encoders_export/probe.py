"""What an encoder knows: ridge probes from the pooled latent z(t) on held-out episodes.

    python -m encoders_export.probe --data STORE [STORE ...] --encoder mini|FOLDER|random [--encoder ...]

Targets: end-effector position (m), gripper opening (m) and, if the store has them, object positions (m). Every
encoder is compared with random weights of the same architecture and with pixels pooled to 8 x 8, all through
the same standardisation, ridge path and split by episode. Prints a table of R^2 and effective rank.
"""

import argparse
import functools
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from encoders_export.jepa import PredictorConfig, build_model
from encoders_export.pretrain import effective_rank
from encoders_export.vjepa import TorchEncoder
from wmjax.data.encode import encode_clips, view_clips
from wmjax.data.location import location
from wmjax.data.ridge import ridge_r2
from wmjax.data.split import split_episodes
from wmjax.data.store import TrainingStore
from wmjax.errors import UserError
from wmjax.models.vjepa2.config import preset, to_hf_config

Features = Callable[[np.ndarray], np.ndarray]


def random_encoder(seed: int = 0) -> TorchEncoder:
    """The mini architecture with its initial weights."""
    from safetensors.torch import save_file

    model = build_model(preset("mini"), PredictorConfig(hidden_size=32, num_layers=1, num_heads=1), seed)
    with tempfile.TemporaryDirectory() as folder:
        tensors = {k: v.contiguous() for k, v in model.state_dict().items() if k.startswith("encoder.")}
        save_file(tensors, Path(folder) / "model.safetensors", metadata={"format": "pt"})
        (Path(folder) / "config.json").write_text(json.dumps(to_hf_config(preset("mini"))))
        return TorchEncoder(folder)


def pooled_pixels(clips: np.ndarray) -> np.ndarray:
    """The last frame averaged to 8 x 8 x 3, the honest floor."""
    last = clips[:, -1].astype(np.float32) / 255
    n, height, width, _ = last.shape
    return last.reshape(n, 8, height // 8, 8, width // 8, 3).mean(axis=(2, 4)).reshape(n, -1)


def features_of(store: TrainingStore, encode: Features, length: int, camera: str) -> Float[np.ndarray, "frames dim"]:
    """Flattened features of every frame of a store."""
    index, parts = store.spec.cameras.index(camera), []
    for entry in store.episodes:
        frames = np.array(store.frames[entry["frame_start"] : entry["frame_start"] + entry["num_frames"], index])
        parts.append(encode(view_clips(frames, (0, 0), length)))
    return np.concatenate(parts)


def targets_of(store: TrainingStore) -> dict[str, Float[np.ndarray, "frames dim"]]:
    """What to predict at every frame."""
    state = store.state[store.frame_row].astype(np.float64)
    return {"eef xyz": state[:, :3], "gripper": (state[:, 6] - state[:, 7])[:, None]}


MANY = 8
"""More objects than this are shown by their summary only."""
FALLEN = 0.1
"""An object this far (m) below where its task's objects of that name usually are has fallen out of the picture."""


def objects_of(stores: Sequence[TrainingStore]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Rows and positions (xy, m) of every object that lies in at least six episodes.

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
                seen = [i for i, place in enumerate(track) if place[2] > lowest]
                rows.setdefault(name, []).extend(offset + entry["frame_start"] + i for i in seen)
                places.setdefault(name, []).extend(track[i][:2] for i in seen)
                episodes[name] = episodes.get(name, 0) + bool(seen)
        offset += len(store.frame_step)
    return {name: (np.array(rows[name]), np.array(places[name])) for name in sorted(rows) if episodes[name] >= 6}


def probe(
    stores: Sequence[TrainingStore], encoders: dict[str, TorchEncoder], camera: str
) -> dict[str, dict[str, float]]:
    """R^2 per target and object and effective rank, per encoder and for pooled pixels."""
    kinds: dict[str, Features] = {"pixels 8x8": pooled_pixels}
    for name, encoder in encoders.items():
        kinds[name] = functools.partial(_encode, encoder)
    groups, train = _split(stores)
    states = [targets_of(store) for store in stores]
    targets = {key: np.concatenate([s[key] for s in states]) for key in states[0]}
    objects = objects_of(stores)
    table: dict[str, dict[str, float]] = {}
    for name, encode in kinds.items():
        raw = np.concatenate([features_of(store, encode, 4, camera) for store in stores])
        x = raw.reshape(len(raw), -1)
        row = ridge_r2(x, targets, train, groups)
        row |= _object_scores(x, objects, train, groups)
        row["effective rank"] = effective_rank(torch.from_numpy(raw.reshape(-1, raw.shape[-1])))
        table[name] = row
    return table


def _object_scores(
    x: np.ndarray, objects: dict[str, tuple[np.ndarray, np.ndarray]], train: np.ndarray, groups: np.ndarray
) -> dict[str, float]:
    """R^2 of every object's position, then over all of them together and their median.

    Together: the share of the summed squared deviations (m^2) that is explained, so that an object counts by how
    far it is moved about; the median counts alike those that hardly ever move.
    """
    together: dict[bytes, list[str]] = {}  # one decomposition serves all objects that are seen in the same rows
    for name, (rows, _) in objects.items():
        if len(np.unique(groups[rows][train[rows]])) >= 4 and not train[rows].all():
            together.setdefault(rows.tobytes(), []).append(name)
    scores: dict[str, float] = {}
    weights: list[float] = []
    for names in together.values():
        rows = objects[names[0]][0]
        fit, places = train[rows], {f"xy {name}": objects[name][1] for name in names}
        scores |= ridge_r2(x[rows], places, fit, groups[rows])
        weights += [((xy[~fit] - xy[fit].mean(0)) ** 2).sum() for xy in places.values()]
    if not scores:
        return {}
    values = list(scores.values())
    overall = float(np.average(values, weights=weights))
    return scores | {"objects xy": overall, "objects xy (median)": float(np.median(values))}


def _encode(encoder: TorchEncoder, clips: np.ndarray) -> np.ndarray:
    return encode_clips(encoder, clips, 32)


def _split(stores: Sequence[TrainingStore]) -> tuple[np.ndarray, np.ndarray]:
    """Episode of every frame (unique over the stores), and whether it is used for fitting."""
    groups, train, offset = [], [], 0
    for store in stores:
        chosen, _ = split_episodes(store.episodes, 0.25, 0)
        groups.append(store.frame_episode + offset)
        train.append(np.isin(store.frame_episode, chosen))
        offset += len(store.episodes)
    return np.concatenate(groups), np.concatenate(train)


def show(table: dict[str, dict[str, float]]) -> str:
    """The table as Markdown; single objects only if they are few."""
    columns = list(dict.fromkeys(key for row in table.values() for key in row))
    if sum(key.startswith("xy ") for key in columns) > MANY:
        columns = [key for key in columns if not key.startswith("xy ")]
    lines = ["| features | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, row in table.items():
        lines.append(f"| {name} | " + " | ".join(f"{row[c]:.3f}" if c in row else "-" for c in columns) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m encoders_export.probe", description="Linear probes of encoders.")
    parser.add_argument("--data", type=location, nargs="+", required=True, help="training stores")
    parser.add_argument(
        "--encoder", action="append", help="mini, a folder or random; repeatable (default: mini, random)"
    )
    parser.add_argument("--camera", default="agentview")
    parser.add_argument("--json", type=Path, help="also write the numbers there")
    options = parser.parse_args(arguments)
    try:
        names = options.encoder or ["mini", "random"]
        encoders = {name: random_encoder() if name == "random" else TorchEncoder(name) for name in names}
        table = probe([TrainingStore(folder) for folder in options.data], encoders, options.camera)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(show(table))
    if options.json:
        options.json.write_text(json.dumps(table, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
