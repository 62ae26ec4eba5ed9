"""The training store: frames every ``frame_stride`` control steps, state and action at every step.

A folder of memory-mapped arrays with an integrity manifest. Episodes are written one by one as parts, by any
number of processes, and merged once by :func:`finalize`. Imports neither jax nor the simulator.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32

from wmjax.core.errors import UserError
from wmjax.core.files import hash_json, read_npz, require_space
from wmjax.core.location import Location, Rows, local, location
from wmjax.core.paths import listed
from wmjax.core.reading import typed
from wmjax.core.settings import Range
from wmjax.core.specs import ActionSpec, ObservationSpec, from_dict, to_dict
from wmjax.core.store_files import StoreWriter, load_from, open_array, read_array, read_manifest, verify_files
from wmjax.core.verified import remember, verify_once
from wmjax.data.episode import (
    DTYPES,
    OPTIONAL_ARRAYS,
    EpisodeData,
    check_episode,
    load_episode,
    save_episode,
)

FORMAT = "wmjax training store"
VERSION = 2
PARTS = "parts"
FIX = "record it with `python -m wmjax.record` or convert a LeRobot dataset"
OPTIONAL_META: dict[str, Any] = {
    "seed": None,
    "init": None,
    "settled_hash": "",
    "perturbation": None,
    "success_step": None,
}

__all__ = ["EpisodeData", "Task", "TrainingStore", "finalize", "part_names", "write_part"]


@dataclasses.dataclass(frozen=True)
class Task:
    """The task of an episode."""

    suite: str
    task_id: int
    instruction: str


def write_part(
    folder: str | Path,
    name: str,
    episode: EpisodeData,
    spec: ObservationSpec | None = None,
    action: ActionSpec | None = None,
) -> Path:
    """Checks a finished episode and writes it atomically as ``parts/<name>.npz``.

    Args:
        folder: the store to be.
        name: unique within the store, without slashes; episodes are ordered by it.
        episode: the data.
        spec: checks image size, frame timing and the state's size as well when given.
        action: checks size and bounds of the actions when given.

    Raises:
        UserError: the episode is not fit for training (see :func:`check_episode`), or the disk is full.

    """
    if not name or "/" in name or name.startswith("."):
        raise UserError(f"part name {name!r} must be a plain file name; use letters, digits, '-' and '_'")
    path = local(folder) / PARTS / f"{name}.npz"
    check_episode(episode, spec, action, str(path))
    save_episode(path, episode)
    return path


def part_names(folder: Path) -> list[str]:
    """Names of the finished parts, sorted; what a resumed recording may skip."""
    return sorted(path.stem for path in listed(Path(folder) / PARTS, "*.npz"))


def finalize(
    folder: str | Path,
    spec: ObservationSpec,
    action: ActionSpec,
    tasks: Sequence[Task] | None = None,
    *,
    describe: Callable[[Sequence[Mapping[str, Any]]], Mapping[str, Any]] | None = None,
    skipped: Sequence[Mapping[str, str]] = (),
) -> "TrainingStore":
    """Merges the parts into the store; an interrupted call leaves the folder as it was.

    Args:
        folder: where the parts are.
        spec: the observations of every part.
        action: the actions of every part.
        tasks: the order of the task table; the parts' own tasks, sorted, when None.
        describe: makes JSON values from the table of episodes, which the manifest then holds as ``recording``.
        skipped: episodes of the source that were left out, and why, for the manifest.

    Raises:
        UserError: no parts, a part that is damaged or breaks the spec, a task outside ``tasks``, parts with and
            without chunk labels or branches or with ones of different lengths, no space.

    """
    folder = local(folder)
    names = part_names(folder)
    if not names:
        raise UserError(f"{folder / PARTS}: no finished episodes; {FIX} first")
    metas, lengths, frames = [], [], []
    optional: dict[str, tuple[int, ...]] | None = None
    for name in names:
        where = folder / PARTS / f"{name}.npz"
        episode = load_episode(where)
        check_episode(episode, spec, action, str(where))
        optional = _same_optional(episode, optional, where)
        metas.append({**episode.meta, "part": name})
        lengths.append(episode.length)
        frames.append(len(episode.images))
    table = list(tasks) if tasks is not None else sorted({_task(meta) for meta in metas}, key=dataclasses.astuple)
    content: dict[str, Any] = {
        "observation_spec": to_dict(spec),
        "action_spec": to_dict(action),
        "tasks": [dataclasses.asdict(task) for task in table],
        "episodes": _episode_table(metas, lengths, frames, table, folder),
        **({"skipped": [dict(entry) for entry in skipped]} if skipped else {}),
    }
    if describe is not None:
        content["recording"] = dict(describe(content["episodes"]))
    images = sum(frames) * (1 + (optional or {}).get("branch_images", (0,))[0])
    require_space(folder, images * len(spec.cameras) * spec.image_size**2 * 3 + sum(lengths) * 100)
    with StoreWriter(folder, FORMAT, VERSION) as writer:
        _merge(writer, folder, spec, action, names, sum(lengths), sum(frames))
        _merge_optional(writer, folder, names, sum(lengths), sum(frames), optional or {})
        remember(folder, writer.commit(content))
    return TrainingStore(folder)


def _same_optional(
    episode: EpisodeData, before: dict[str, tuple[int, ...]] | None, where: Path
) -> dict[str, tuple[int, ...]]:
    """The row shapes of an episode's optional arrays; refuses those that differ from the episodes' before it."""
    values = {name: getattr(episode, name) for name in OPTIONAL_ARRAYS}
    found = {name: value.shape[1:] for name, value in values.items() if value is not None}
    if before is not None and found != before:
        raise UserError(
            f"{where}: has the rows {found or 'none'} of optional arrays, the parts before it {before or 'none'}; "
            "record all parts with the same settings"
        )
    return found


def _task(meta: dict[str, Any]) -> Task:
    return Task(str(meta["suite"]), int(meta["task_id"]), meta["instruction"])


def _episode_table(
    metas: list[dict[str, Any]], lengths: list[int], frames: list[int], tasks: list[Task], folder: Path
) -> list[dict[str, Any]]:
    """The manifest's list of episodes: their metas, and where their rows and frames lie."""
    table, step_start, frame_start = [], 0, 0
    for index, (meta, length, count) in enumerate(zip(metas, lengths, frames, strict=True)):
        task = _task(meta)
        if task not in tasks:
            raise UserError(f"{folder / PARTS}/{meta['part']}.npz: task {task} is not in the task list; add or drop it")
        place = {"length": length, "num_frames": count, "step_start": step_start, "frame_start": frame_start}
        table.append({**OPTIONAL_META, **meta, "index": index, "task": tasks.index(task), **place})
        step_start, frame_start = step_start + length, frame_start + count
    return table


def _merge(
    writer: StoreWriter, folder: Path, spec: ObservationSpec, action: ActionSpec, names: list[str], n: int, f: int
) -> None:
    """Streams the parts into the store's arrays, one episode in memory at a time."""
    size = spec.image_size
    images = writer.array("frames.npy", np.uint8, (f, len(spec.cameras), size, size, 3))
    steps = writer.array("frame_step.npy", np.int32, (f,))
    columns = {
        name: writer.array(f"{name}.npy", np.float32, (n, dim))
        for name, dim in (("state", spec.state_dim), ("action", action.dim), ("executed", action.dim))
    }
    settled, row, frame = {}, 0, 0
    for index, name in enumerate(names):
        episode = load_episode(folder / PARTS / f"{name}.npz")
        rows, span = slice(row, row + episode.length), slice(frame, frame + len(episode.images))
        images[span], steps[span] = episode.images, episode.frame_step
        for key, column in columns.items():
            column[rows] = getattr(episode, key)
        settled[str(index)] = episode.settled_state
        row, frame = rows.stop, span.stop
    for array in (images, steps, *columns.values()):
        with contextlib.suppress(AttributeError):  # empty arrays are not memory maps
            array.flush()  # type: ignore[attr-defined]
    with writer.path("settled.npz").open("wb") as file:
        np.savez(file, allow_pickle=False, **settled)


def _merge_optional(
    writer: StoreWriter, folder: Path, names: list[str], n: int, f: int, rows: dict[str, tuple[int, ...]]
) -> None:
    """Merges the arrays that a store may lack: ``injected`` of control steps, the others of frames."""
    for name, shape in rows.items():
        count = n if name == "injected" else f
        array = writer.array(f"{name}.npy", DTYPES[name], (count, *shape))
        start = 0
        for part in names:
            values = getattr(load_episode(folder / PARTS / f"{part}.npz"), name)
            array[start : start + len(values)] = values
            start += len(values)
        with contextlib.suppress(AttributeError):  # empty arrays are not memory maps
            array.flush()  # type: ignore[attr-defined]


Place = Annotated[int, Range(0, 1e15)]


@dataclasses.dataclass(frozen=True)
class _Episode:
    """The fields of an episode's entry that the readers of a store use."""

    index: Place
    task: Place
    length: Place
    num_frames: Place
    step_start: Place
    frame_start: Place
    suite: str
    task_id: int
    instruction: str


@dataclasses.dataclass(frozen=True)
class _Content:
    """A store's manifest, without its files."""

    observation_spec: dict[str, Any]
    action_spec: dict[str, Any]
    tasks: list[Task]
    episodes: list[_Episode]


class TrainingStore:
    """A finished training store, opened for reading: a local folder or a URL (:mod:`wmjax.core.location`).

    Attributes:
        spec: the definition of its observations.
        action_spec: the definition of its actions, without normalisation.
        tasks: the task table; ``episodes[i]["task"]`` indexes it.
        episodes: one dict per episode: index, task, length, num_frames, step_start, frame_start, suite, task_id,
            instruction, seed, init, settled_hash, perturbation, success_step and the recorder's extras.
        state, action, executed: float32 ``[N, state_dim]``, ``[N, dim]``, ``[N, dim]``, one row per control step.
        frames: uint8 ``[F, cameras, height, width, 3]``, a read-only memory map or a remote array.
        frame_step: int32 ``[F]``, control step of each frame counted from its episode's start.
        action_chunk: float32 ``[F, label_steps, dim]``, what the expert would execute from each frame on; None if the
            store has no such labels, as one converted from another dataset.
        injected: bool ``[N]``, whether the recorder provoked a failure at a control step; None if it is not known.
        branch_images: uint8 ``[F, branch, cameras, height, width, 3]``, the frames that would follow each frame if the
            expert acted undisturbed, a read-only memory map or a remote array; None if they were not recorded.

    Raises:
        UserError: no store there, another version, a missing or truncated file; at a URL also no answer, no
            permission, no package for it, and small files whose bytes changed.

    """

    def __init__(self, folder: str | Location) -> None:
        self.folder = location(folder)
        if isinstance(self.folder, Path) and (self.folder / "meta" / "info.json").exists():
            raise UserError(
                f"{folder}: a LeRobot dataset; convert it first with `python -m wmjax.convert {folder} --out STORE`"
            )
        self.manifest = read_manifest(self.folder, FORMAT, VERSION, FIX)
        where = str(self.folder / "manifest.json")
        content: _Content = typed(self.manifest, _Content, where, FIX)
        self.spec = from_dict(ObservationSpec, content.observation_spec, where)
        self.action_spec = from_dict(ActionSpec, content.action_spec, where)
        self.tasks = content.tasks
        self.episodes: list[dict[str, Any]] = self.manifest["episodes"]
        self.state: Float32[np.ndarray, "n state"] = self._read("state.npy")
        self.action: Float32[np.ndarray, "n action"] = self._read("action.npy")
        self.executed: Float32[np.ndarray, "n action"] = self._read("executed.npy")
        self.frames: Rows = open_array(self.folder, self.manifest, "frames.npy")
        self.frame_step: Int32[np.ndarray, " f"] = self._read("frame_step.npy")
        self.action_chunk: Float32[np.ndarray, "f label_steps action"] | None = self._read_optional("action_chunk.npy")
        self.injected: Bool[np.ndarray, " n"] | None = self._read_optional("injected.npy")
        self.branch_images: Rows | None = self._open_optional("branch_images.npy")
        self._require_shapes(content.episodes, where)

    def _require_shapes(self, episodes: "list[_Episode]", where: str) -> None:
        """Refuses arrays that are not those of the listed episodes, or episodes that do not follow each other."""
        step = frame = 0
        for number, entry in enumerate(episodes):
            if (entry.index, entry.step_start, entry.frame_start) != (number, step, frame):
                raise UserError(f"{where}: episode {number} does not follow the one before it; {FIX}")
            if entry.task >= len(self.tasks):
                raise UserError(f"{where}: episode {number} is of task {entry.task} of {len(self.tasks)}; {FIX}")
            step, frame = step + entry.length, frame + entry.num_frames
        size = self.spec.image_size
        expected = {
            "state.npy": (self.state, (step, self.spec.state_dim)),
            "action.npy": (self.action, (step, self.action_spec.dim)),
            "executed.npy": (self.executed, (step, self.action_spec.dim)),
            "frame_step.npy": (self.frame_step, (frame,)),
            "frames.npy": (self.frames, (frame, len(self.spec.cameras), size, size, 3)),
        }
        for name, (array, shape) in expected.items():
            if array.shape != shape:
                raise UserError(f"{where}: {name} has shape {array.shape}, its episodes need {shape}; {FIX}")

    def _read_optional(self, name: str) -> np.ndarray | None:
        return self._read(name) if name in self.manifest["files"] else None

    def _open_optional(self, name: str) -> Rows | None:
        return open_array(self.folder, self.manifest, name) if name in self.manifest["files"] else None

    def _read(self, name: str) -> np.ndarray:
        return read_array(self.folder, self.manifest, name)

    @functools.cached_property
    def hash(self) -> str:
        """Identity of the store's content, independent of its location; a latent store made from it records it."""
        return hash_json(self.manifest)

    @functools.cached_property
    def frame_episode(self) -> Int32[np.ndarray, " f"]:
        """The episode of each frame."""
        counts = [episode["num_frames"] for episode in self.episodes]
        return np.repeat(np.arange(len(counts), dtype=np.int32), counts)

    @functools.cached_property
    def frame_row(self) -> Int32[np.ndarray, " f"]:
        """The row of ``state`` and ``action`` at which each frame was taken."""
        starts = np.array([episode["step_start"] for episode in self.episodes], np.int32)
        return starts[self.frame_episode] + self.frame_step

    def episode(self, index: int | np.integer) -> EpisodeData:
        """One episode as it was recorded (frames stay memory-mapped; of a remote store they are read)."""
        entry = self.episodes[index]
        rows = slice(entry["step_start"], entry["step_start"] + entry["length"])
        span = slice(entry["frame_start"], entry["frame_start"] + entry["num_frames"])
        place = ("index", "task", "length", "num_frames", "step_start", "frame_start")
        return EpisodeData(
            images=self.frames[span],
            frame_step=self.frame_step[span],
            state=self.state[rows],
            action=self.action[rows],
            executed=self.executed[rows],
            settled_state=self.settled_state(index),
            meta={key: value for key, value in entry.items() if key not in place},
            action_chunk=None if self.action_chunk is None else self.action_chunk[span],
            injected=None if self.injected is None else self.injected[rows],
            branch_images=None if self.branch_images is None else self.branch_images[span],
        )

    def settled_state(self, index: int | np.integer) -> Float64[np.ndarray, " s"]:
        """The full simulator state an episode started from."""
        return self._settled[str(index)]

    @functools.cached_property
    def _settled(self) -> dict[str, np.ndarray]:
        return read_npz(load_from(self.folder, self.manifest, "settled.npz"))

    def verify(self) -> None:
        """Recomputes every hash.

        Raises:
            UserError: names the file whose bytes changed.

        """
        verify_files(self.folder, self.manifest)

    def verify_once(self) -> None:
        """Recomputes the hashes that :func:`wmjax.core.verified.verify_once` cannot know to be right.

        Raises:
            UserError: names the file whose bytes changed.

        """
        verify_once(self.folder, self.manifest)
