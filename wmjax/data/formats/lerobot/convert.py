"""Conversion of a LeRobot dataset (local folder or hub id) to a training store."""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32, UInt8

from wmjax.core.errors import UserError
from wmjax.core.files import hash_json
from wmjax.core.location import local
from wmjax.core.paths import expand, listed
from wmjax.core.specs import PUBLISHED, ActionSpec, ObservationSpec
from wmjax.data.episode import EpisodeData
from wmjax.data.formats.importer import (
    Gripper,
    Progress,
    convert_episodes,
    identify,
    prepare_action,
    refuse_finished,
    require_positive,
)
from wmjax.data.formats.lerobot.dataset import LeRobotDataset
from wmjax.data.formats.lerobot.layout import load_layout
from wmjax.data.formats.lerobot.metadata import Feature
from wmjax.data.formats.lerobot.selection import Piece, parse_selection
from wmjax.data.observation import resize_image
from wmjax.data.split import SOURCE_ROW
from wmjax.data.statistics import RunningMoments
from wmjax.data.store import TrainingStore
from wmjax.sim.environment import ENVIRONMENTS

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def convert(
    source: str,
    out: Path,
    *,
    image_size: int = 112,
    frame_stride: int = 4,
    layout: str | None = None,
    max_episodes: int | None = None,
    revision: str | None = None,
    grippers: tuple[int, ...] | None = None,
    select: Sequence[str] = (),
    gripper: Gripper = "open-negative",
    skip_bad: bool = False,
    progress: Progress = lambda done, total: None,
) -> TrainingStore:
    """Converts a dataset, episode by episode; interrupted, it resumes where it stopped.

    Images are kept every ``frame_stride`` control steps, resized to ``image_size`` by
    :func:`wmjax.data.observation.resize_image`; state and action at every step. An episode with several tasks becomes
    several, see :class:`wmjax.data.formats.lerobot.selection.Piece`.

    Args:
        source: local folder or hub id such as ``HuggingFaceVLA/libero``.
        out: the training store to be.
        image_size: pixels.
        frame_stride: control steps per frame.
        layout: name of a layout, or a TOML file; chosen by the columns when None.
        max_episodes: at most this many of those selected.
        revision: of the hub dataset.
        grippers: action dimensions that are gripper commands, see :func:`action_spec`.
        select: which cameras, episodes and tasks, see :func:`wmjax.data.formats.lerobot.selection.parse_selection`.
        gripper: what opens the gripper in the dataset.
        skip_bad: leave out episodes that cannot be used, and list them in the store's manifest.
        progress: called with episodes done and their total.

    Raises:
        UserError: everything that is wrong with the source; ``out`` holds a store or another conversion.

    """
    out = local(out)
    refuse_finished(out)
    require_positive(image_size, frame_stride, max_episodes)
    selection = parse_selection(select)
    dataset = selection.open(resolve(source, revision), load_layout(layout) if layout else None)
    spec = observation_spec(dataset, image_size, frame_stride)
    action = action_spec(dataset, grippers)
    episodes = {
        piece.name: functools.partial(read_episode, dataset, piece, spec, source, gripper)
        for piece in selection.pieces(dataset, max_episodes)
    }
    content = hash_json([dataclasses.asdict(part) for part in (dataset.info, dataset.layout)])
    content = hash_json([content, *source_files(dataset), gripper])
    plan = {"source": source, "content": content}
    return convert_episodes(out, spec, action, plan, episodes, progress, skip_bad=skip_bad)


def source_files(dataset: LeRobotDataset) -> tuple[list[tuple[int, int]], str]:
    """What identifies a dataset's content: its episodes' lengths, and a hash of its files."""
    kinds = {".json", ".jsonl", ".parquet", Path(dataset.info.video_path or "").suffix}
    found = [path for name in ("meta", "data", "videos") for path in listed(dataset.folder / name, "**/*")]
    files = [path for path in found if path.suffix in kinds and path.is_file()]
    return [(entry.index, entry.length) for entry in dataset.episodes], identify(dataset.folder, files)


def resolve(source: str, revision: str | None) -> Path:
    """The folder of a dataset, downloading it when ``source`` is a hub id.

    Raises:
        UserError: neither a folder nor a hub id, or the download fails.

    """
    if (folder := expand(source)).is_dir():
        return folder
    if not HUB_ID.fullmatch(source):
        raise UserError(f"data is {source!r}, neither an existing folder nor a hub id; give a folder or OWNER/NAME")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, repo_type="dataset", revision=revision))
    except Exception as error:  # the hub client raises its own, requests' and httpx's kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"data is {source!r}: no such folder, and the download failed ({reason}); check name and network"
        ) from error


def observation_spec(dataset: LeRobotDataset, image_size: int, frame_stride: int) -> ObservationSpec:
    """What the observations of the converted data are."""
    layout, (height, width) = dataset.layout, dataset.image_size
    resized = None if (height, width) == (image_size, image_size) else height
    if layout.environment:
        known = ENVIRONMENTS.resolve(layout.environment).observation_spec
    else:
        names = feature_names(dataset.features[layout.state], dataset.state_dim)
        known = ObservationSpec((), names, ("",) * len(names), dataset.fps, rotation=layout.rotation)
        known = dataclasses.replace(
            known, position=layout.position, orientation=layout.orientation, fingers=layout.fingers
        )
    return dataclasses.replace(
        known,
        cameras=tuple(layout.cameras),
        image_size=image_size,
        resize_filter="none" if resized is None else "bilinear",
        control_hz=layout.control_hz or known.control_hz,
        frame_stride=frame_stride,
        reflection=True,
        mesh_detail_mm=0.0,
        simulator=f"{PUBLISHED} in {layout.name}",
        drawn_size=0 if resized is None else resized,
    )


def action_spec(dataset: LeRobotDataset, grippers: tuple[int, ...] | None = None) -> ActionSpec:
    """What the actions of the converted data are.

    Args:
        dataset: the source.
        grippers: dimensions that are gripper commands, if they are not those that the layout, or the names, say.

    Raises:
        UserError: a gripper that is no dimension or never moves, damaged columns.

    """
    layout = dataset.layout
    if layout.environment:
        if grippers is not None:
            raise UserError(f"--grippers is given, but layout {layout.name} knows its own; leave it out")
        return ENVIRONMENTS.resolve(layout.environment).action_spec
    names = feature_names(dataset.features[layout.action], dataset.action_dim)
    prefix, fix = "--grippers names", "leave it out"
    if grippers is None and layout.grippers is not None:
        grippers, prefix, fix = layout.grippers, f"grippers of layout {layout.name} names", "correct the layout's file"
    if grippers is None:
        grippers = tuple(index for index, name in enumerate(names) if "gripper" in name.lower())
        prefix, fix = f"{dataset.folder}/meta/info.json calls a gripper", "say which are with --grippers, or none"
    opened, closed = layout.gripper_open, layout.gripper_closed
    plain = ActionSpec(names, ("",) * len(names), f"actions of {layout.name} as recorded")
    if len(opened) != len(grippers) or len(closed) != len(grippers):
        closed, opened = _gripper_range(dataset, grippers, prefix, fix)
    return dataclasses.replace(plain, grippers=grippers, gripper_open=opened, gripper_closed=closed)


def _gripper_range(
    dataset: LeRobotDataset, grippers: tuple[int, ...], prefix: str, fix: str
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Smallest and largest command of each gripper: closed and open, as LeRobot's own robots count.

    Raises:
        UserError: no such dimension, or one that never moves; begins with ``prefix`` and ends with ``fix``.

    """
    if not grippers:
        return (), ()
    for index in grippers:
        if not 0 <= index < dataset.action_dim:
            raise UserError(f"{prefix} dimension {index}; the actions have 0 to {dataset.action_dim - 1}, {fix}")
    moments = RunningMoments(len(grippers))
    for entry in dataset.episodes:
        moments.update(dataset.columns(entry).action[:, list(grippers)])
    for index, low, high in zip(grippers, moments.min, moments.max, strict=True):
        if not low < high:
            raise UserError(f"{prefix} dimension {index}, which is {low:g} in all of {dataset.folder}; {fix}")
    return tuple(moments.min.tolist()), tuple(moments.max.tolist())


def feature_names(feature: Feature, dim: int) -> tuple[str, ...]:
    """Names of a column's values as its metadata gives them (a list, or lists by group), else their numbers."""
    names = feature.names
    if isinstance(names, Mapping):
        names = [name for group in names.values() if isinstance(group, list) for name in group]
    if isinstance(names, list) and len(names) == dim:
        return tuple(str(name) for name in names)
    return tuple(str(index) for index in range(dim))


def read_episode(
    dataset: LeRobotDataset, piece: Piece, spec: ObservationSpec, source: str, gripper: Gripper = "open-negative"
) -> EpisodeData:
    """One piece of a dataset in the store's form; the executed actions are the labels.

    Raises:
        UserError: damaged files, or rows that do not fit the metadata.

    """
    entry, rows = piece.entry, slice(piece.rows.start, piece.rows.stop)
    columns = dataset.columns(entry)
    action = columns.action
    if dataset.layout.environment:
        robot = ENVIRONMENTS.resolve(dataset.layout.environment).action_spec
        action = prepare_action(action, columns.state, gripper, robot, spec, f"{entry.data}: episode {entry.index}")
    steps, images = read_frames(dataset, piece, spec)
    return EpisodeData(
        images=images,
        frame_step=steps,
        state=columns.state[rows],
        action=action[rows],
        executed=action[rows],
        settled_state=np.zeros(0),
        meta=describe_piece(dataset, piece, int(columns.task_index[rows.start]), source),
    )


def read_frames(
    dataset: LeRobotDataset, piece: Piece, spec: ObservationSpec
) -> tuple[Int32[np.ndarray, " f"], UInt8[np.ndarray, "f cameras size size 3"]]:
    """The control steps of a piece's frames, counted from its start, and the frames in the store's size.

    Raises:
        UserError: damaged images.

    """
    steps = np.arange(0, len(piece.rows), spec.frame_stride, dtype=np.int32)
    full = dataset.images(piece.entry, piece.rows.start + steps)
    return steps, np.stack([[resize_image(image, spec.image_size) for image in frame] for frame in full])


def describe_piece(dataset: LeRobotDataset, piece: Piece, task: int, source: str) -> dict[str, Any]:
    """The meta of a piece: its task, and where it comes from."""
    found = {
        "suite": dataset.layout.name if expand(source).is_dir() else source,
        "task_id": task,
        "instruction": dataset.tasks[task],
        "source_episode": piece.entry.index,
    }
    return found if piece.whole else found | {SOURCE_ROW: piece.rows.start}
