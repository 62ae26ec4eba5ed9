"""Conversion of a LeRobot dataset's video alone, to train a world model beside demonstrations that have actions."""

import dataclasses
import functools
from pathlib import Path

import numpy as np

from wmjax.core.errors import UserError
from wmjax.core.files import hash_json
from wmjax.core.location import local
from wmjax.core.specs import ObservationSpec
from wmjax.data.episode import EpisodeData
from wmjax.data.formats.importer import Progress, convert_episodes, refuse_finished
from wmjax.data.formats.lerobot.convert import describe_piece, read_frames, resolve, source_files
from wmjax.data.formats.lerobot.dataset import SAME_RATE, LeRobotDataset
from wmjax.data.formats.lerobot.layout import load_layout
from wmjax.data.formats.lerobot.selection import Piece, Selection
from wmjax.data.split import VIDEO_ONLY
from wmjax.data.store import TrainingStore
from wmjax.sim.environment import ENVIRONMENTS


def convert_video(
    source: str,
    out: Path,
    like: TrainingStore,
    *,
    layout: str | None = None,
    max_episodes: int | None = None,
    revision: str | None = None,
    skip_bad: bool = False,
    progress: Progress = lambda done, total: None,
) -> TrainingStore:
    """Converts the frames of a dataset, whose states and actions may be missing and are not read.

    The store has the specs of ``like``, so that ``data.paths`` takes both. Its episodes are marked: training uses their
    frames only, and never validates on them. States and actions are zeros that nothing reads.

    Args:
        source: local folder or hub id.
        out: the training store to be.
        like: the demonstrations that it is trained beside: they name the cameras, image size, stride and robot.
        layout: name of a layout, or a TOML file; chosen by the columns when None.
        max_episodes: only this many, the first ones.
        revision: of the hub dataset.
        skip_bad: leave out episodes that cannot be used, and list them in the store's manifest.
        progress: called with episodes done and their total.

    Raises:
        UserError: everything that is wrong with the source; another rate than that of ``like``; ``out`` holds a store.

    """
    out = local(out)
    refuse_finished(out)
    folder = resolve(source, revision)
    dataset = LeRobotDataset(folder, load_layout(layout) if layout else None, like.spec.cameras)
    _require_rate(dataset, like.spec)
    read = functools.partial(_read_episode, dataset, like, source)
    pieces = Selection().pieces(dataset, max_episodes)
    episodes = {piece.name: functools.partial(read, piece) for piece in pieces}
    content = hash_json([dataclasses.asdict(part) for part in (dataset.info, dataset.layout)])
    content = hash_json([content, source_files(dataset), VIDEO_ONLY, _chunk_steps(like)])
    plan = {"source": source, "content": content}
    return convert_episodes(out, like.spec, like.action_spec, plan, episodes, progress, skip_bad=skip_bad)


def _require_rate(dataset: LeRobotDataset, spec: ObservationSpec) -> None:
    layout = dataset.layout
    own = layout.control_hz
    if own is None:
        own = (
            ENVIRONMENTS.resolve(layout.environment).observation_spec.control_hz if layout.environment else dataset.fps
        )
    if abs(own / spec.control_hz - 1) > SAME_RATE:
        raise UserError(
            f"{dataset.folder}: its rows have {own:g} Hz, the store of --video-only has {spec.control_hz:g}; resample "
            "the dataset, or say its true rate in a layout file"
        )


def _read_episode(dataset: LeRobotDataset, like: TrainingStore, source: str, piece: Piece) -> EpisodeData:
    """The frames of one piece."""
    spec, dim, length = like.spec, like.action_spec.dim, len(piece.rows)
    task = int(dataset.task_index(piece.entry)[piece.rows.start])
    steps, images = read_frames(dataset, piece, spec)
    unknown = np.zeros((length, dim), np.float32)
    chunk = _chunk_steps(like)
    return EpisodeData(
        images=images,
        frame_step=steps,
        state=np.zeros((length, spec.state_dim), np.float32),
        action=unknown,
        executed=unknown,
        settled_state=np.zeros(0),
        meta=describe_piece(dataset, piece, task, source) | {VIDEO_ONLY: True},
        action_chunk=np.zeros((len(steps), chunk, dim), np.float32) if chunk else None,
        injected=None if like.injected is None else np.zeros(length, bool),
    )


def _chunk_steps(like: TrainingStore) -> int:
    """Control steps of the chunk labels that the other store has, which a union's stores share; 0 for none."""
    return 0 if like.action_chunk is None else like.action_chunk.shape[1]
