"""LIBERO's original demonstrations: one HDF5 file per task, as its ``scripts/create_dataset.py`` writes them.

``data/demo_i`` holds ``actions [n, dim]`` and ``obs/...`` of as many rows, but **row j of the observations was taken
after action j**: the script appends what ``env.step(action)`` returned. The observation before action j + 1 is row j,
so an episode of n rows becomes n - 1 control steps. Taken as they are, the rows would teach the policy the action that
has just been executed. Images are raw MuJoCo images (``macros_image_convention`` "opengl"), and orientations are
robosuite's axis-angle already. Actions and the gripper's sign are those of every published LIBERO dataset.

Copies that were replayed to leave out steps without motion have no attributes, and there row j was taken *before*
action j. Nothing in the file says so, so it must be said: ``rows="before"``. Their instruction is the file's name.
"""

import contextlib
import dataclasses
import functools
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import Float32, UInt8

from wmjax.core.errors import UserError
from wmjax.core.location import local
from wmjax.core.paths import expand, listed
from wmjax.core.reading import open_hdf5, parse_json
from wmjax.core.specs import PUBLISHED, ObservationSpec
from wmjax.data.episode import EpisodeData
from wmjax.data.formats.base import ConvertSettings, DatasetFormat, Rows
from wmjax.data.formats.importer import (
    Gripper,
    Progress,
    convert_episodes,
    identify,
    prepare_action,
    refuse_finished,
    require_positive,
)
from wmjax.data.observation import orient_image, resize_image
from wmjax.data.store import TrainingStore
from wmjax.sim.libero import ACTION_SPEC, OBSERVATION_SPEC

if TYPE_CHECKING:
    import h5py

CAMERAS = {"agentview": "agentview_rgb", "robot0_eye_in_hand": "eye_in_hand_rgb"}
STATE = {"ee_pos": 3, "ee_ori": 3, "gripper_states": 2}
"""Columns of the state, in the order of ``ObservationSpec.state``, and their sizes."""
CONVENTION = "opengl"
SUFFIXES = (".hdf5", ".h5")
FIX = "download it again, or leave it out"
SKIP = "repair it, or leave such demonstrations out with --skip-bad"
ATTRIBUTES = ("problem_info", "bddl_file_name", "macros_image_convention", "env_args")
"""What LIBERO writes beside its demonstrations."""


@dataclasses.dataclass(frozen=True)
class _Problem:
    language_instruction: str | tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _EnvKwargs:
    control_freq: int | float


@dataclasses.dataclass(frozen=True)
class _EnvArgs:
    env_kwargs: _EnvKwargs


class LiberoHDF5(DatasetFormat):
    """A folder of LIBERO's files, or one of them."""

    title: ClassVar[str] = "LIBERO's HDF5 files"
    options: ClassVar[tuple[str, ...]] = ("rows",)

    @classmethod
    def recognises(cls, data: str) -> bool:
        """Whether there is an HDF5 file."""
        return bool(find_files(expand(data)))

    @classmethod
    def convert(cls, data: str, out: Path, settings: ConvertSettings, progress: Progress) -> TrainingStore:
        """See :func:`convert`."""
        return convert(
            expand(data),
            out,
            image_size=settings.image_size,
            frame_stride=settings.frame_stride,
            max_episodes=settings.max_episodes,
            rows=settings.rows or "after",
            gripper=settings.gripper_convention,
            skip_bad=settings.skip_bad,
            progress=progress,
        )


def find_files(source: Path) -> list[Path]:
    """The HDF5 files of a folder and of those below it, sorted, or the given one; empty if there are none."""
    found = [source] if source.is_file() else listed(source, "**/*") if source.is_dir() else []
    return [path for path in found if path.suffix.lower() in SUFFIXES]


def convert(
    source: Path,
    out: Path,
    *,
    image_size: int = 112,
    frame_stride: int = 4,
    max_episodes: int | None = None,
    rows: Rows = "after",
    gripper: Gripper = "open-negative",
    skip_bad: bool = False,
    progress: Progress = lambda done, total: None,
) -> TrainingStore:
    """Converts LIBERO's demonstrations, episode by episode; interrupted, it resumes where it stopped.

    Images are kept every ``frame_stride`` control steps, rotated by 180 degrees, resized to ``image_size`` by
    :func:`wmjax.data.observation.resize_image`; state and action at every step.

    Args:
        source: a folder of ``*_demo.hdf5`` files, or one of them.
        out: the training store to be.
        image_size: pixels.
        frame_stride: control steps per frame.
        max_episodes: only this many, the first ones.
        rows: whether an observation follows the action of its row (LIBERO's files) or precedes it (replayed copies).
        gripper: what opens the gripper in the files.
        skip_bad: leave out demonstrations that cannot be used, and list them in the store's manifest.
        progress: called with episodes done and their total.

    Raises:
        UserError: everything that is wrong with the files; ``out`` holds a store or another conversion.

    """
    out = local(out)
    refuse_finished(out)
    require_positive(image_size, frame_stride, max_episodes)
    files, bad = _open_files(source, rows, skip_bad)
    spec = _spec(source, {file.image_size for file in files}, image_size, frame_stride)
    readers: dict[str, Callable[[], EpisodeData]] = {
        f"task-{file.task:03d}-{demo}": functools.partial(file.episode, demo, spec, gripper)
        for file in files
        for demo in file.demos
    }
    readers |= bad
    chosen = dict(list(readers.items())[:max_episodes])
    content = [identify(source.parent, (file.path for file in files)), rows, gripper]
    return convert_episodes(
        out, spec, ACTION_SPEC, {"source": str(source), "files": content}, chosen, progress, skip_bad=skip_bad
    )


def _spec(source: Path, sizes: set[tuple[int, int]], image_size: int, frame_stride: int) -> ObservationSpec:
    """The observations of files whose images have these heights and widths.

    Raises:
        UserError: images of several sizes, or not square.

    """
    if len(sizes) > 1:
        raise UserError(f"{source}: files have images of different sizes {sorted(sizes)}; convert them separately")
    height, width = next(iter(sizes))
    if height != width:
        raise UserError(f"{source}: images are {height}x{width}, the policy's are square; crop or pad them to a square")
    return dataclasses.replace(
        OBSERVATION_SPEC,
        cameras=tuple(CAMERAS),
        image_size=image_size,
        resize_filter="none" if height == image_size else "bilinear",
        frame_stride=frame_stride,
        reflection=True,
        mesh_detail_mm=0.0,
        simulator=f"{PUBLISHED} in LIBERO's HDF5 files",
        drawn_size=0 if height == image_size else height,
    )


def _open_files(
    source: Path, rows: Rows, skip_bad: bool
) -> tuple[list["DemonstrationFile"], dict[str, Callable[[], EpisodeData]]]:
    """The files of a source and, with ``skip_bad``, what reports each file that cannot be opened when it is read."""
    files: list[DemonstrationFile] = []
    bad: dict[str, Callable[[], EpisodeData]] = {}
    paths = find_files(source)
    for index, path in enumerate(paths):
        try:
            files.append(DemonstrationFile(path, index, rows))
        except UserError as error:
            if not skip_bad:
                raise
            bad[f"task-{index:03d}-{path.stem}"] = functools.partial(_refuse, error)
    if not files:
        reason = f"none of its {len(paths)} HDF5 files can be used" if paths else "no HDF5 files there"
        raise UserError(f"{source}: {reason}; give the folder of LIBERO's demonstrations")
    return files, bad


def _refuse(error: UserError) -> EpisodeData:
    raise error


class DemonstrationFile:
    """One task's demonstrations.

    Attributes:
        path: of the file.
        task: number of the file among those converted (no benchmark task number: those are in no file).
        suite: the folder of the task's BDDL file.
        instruction: of the task.
        demos: names, in the order of their numbers.
        image_size: height and width.

    Raises:
        UserError: not an HDF5 file, truncated, without a group or attribute that LIBERO writes, or of another
            convention of images or control rate.

    """

    def __init__(self, path: Path, task: int, rows: Rows = "after") -> None:
        self.path, self.task, self.rows = path, task, rows
        with self._open() as data:
            if rows == "after":
                self.suite, self.instruction = self._described(data)
            else:
                self.suite, self.instruction = path.parent.name, instruction_of(path)
            self.demos = sorted(data.keys(), key=lambda name: (len(name), name))
            if not self.demos:
                raise UserError(f"{path}: no demonstrations in the group 'data'; {FIX}")
            self._check_totals(data)
            self.image_size = self._image_size(data)

    def episode(self, demo: str, spec: ObservationSpec, gripper: Gripper = "open-negative") -> EpisodeData:
        """One demonstration in the store's form: every action with the observation before it.

        Raises:
            UserError: missing columns, columns of different length, shape or type, or damaged data.

        """
        where = f"{self.path}: {demo}"
        late = int(self.rows == "after")
        with self._open() as data:
            group = _group(data, demo, where)
            observations = _group(group, "obs", where)
            actions = self._column(group, "actions", ACTION_SPEC.dim, demo)
            state = np.concatenate([self._column(observations, key, n, demo) for key, n in STATE.items()], axis=1)
            length = len(actions) - late
            if length < 1 or len(state) != len(actions):
                raise UserError(f"{where} has {len(actions)} actions and {len(state)} states; {SKIP}")
            steps = np.arange(0, length, spec.frame_stride, dtype=np.int32)
            images = [self._images(observations, key, steps, len(actions), demo, spec) for key in CAMERAS.values()]
        state = state[:length]
        actions = prepare_action(actions[late:], state, gripper, ACTION_SPEC, OBSERVATION_SPEC, where)
        return EpisodeData(
            images=np.stack(images, axis=1),
            frame_step=steps,
            state=state,
            action=actions,
            executed=actions,
            settled_state=np.zeros(0),
            meta={
                "suite": f"{self.suite} (HDF5)",
                "task_id": self.task,
                "instruction": self.instruction,
                "source_episode": demo,
                "source_file": self.path.name,
            },
        )

    def _column(self, group: "h5py.Group", name: str, dim: int, demo: str) -> Float32[np.ndarray, "n d"]:
        dataset = _dataset(group, name, f"{self.path}: {demo}")
        if dataset.shape[1:] != (dim,) or dataset.dtype.kind != "f":
            raise UserError(
                f"{self.path}: {demo}/{name} is {dataset.dtype} {dataset.shape}, expected rows of {dim} floats; {SKIP}"
            )
        with np.errstate(over="ignore"):
            return dataset[()].astype(np.float32)

    def _images(
        self, group: "h5py.Group", name: str, steps: np.ndarray, rows: int, demo: str, spec: ObservationSpec
    ) -> UInt8[np.ndarray, "n size size 3"]:
        """Rotated and resized images at some rows."""
        images = _dataset(group, name, f"{self.path}: {demo}")
        expected = (rows, *self.image_size, 3)
        if images.shape != expected or images.dtype != np.uint8:
            raise UserError(
                f"{self.path}: {demo}/{name} is {images.dtype} {images.shape}, expected uint8 {expected} (compressed "
                f"images are not read); {SKIP}"
            )
        return np.stack([resize_image(orient_image(raw), spec.image_size) for raw in images[steps]])

    def _check_totals(self, data: "h5py.Group") -> None:
        """Says with both numbers if another number of demonstrations or of rows is announced than is there."""
        import h5py

        lengths = {demo: data[demo].get("actions") for demo in self.demos if isinstance(data.get(demo), h5py.Group)}
        rows = {demo: found.shape[0] for demo, found in lengths.items() if getattr(found, "shape", None)}
        totals = [("demonstrations", data.attrs.get("num_demos"), len(self.demos))]
        totals.append(("rows", data.attrs.get("total"), sum(rows.values())))
        totals += [(f"rows of {demo}", data[demo].attrs.get("num_samples"), count) for demo, count in rows.items()]
        for what, announced, found in totals:
            if isinstance(announced, int | np.integer) and announced != found:
                text = "%s: its attributes announce %d %s, %d are there; a part may be missing"
                logging.getLogger("wmjax").warning(text, self.path, announced, what, found)

    def _image_size(self, data: "h5py.Group") -> tuple[int, int]:
        """Of the first demonstration that has images; the others must be like it."""
        for demo in self.demos:
            with contextlib.suppress(UserError):
                where = f"{self.path}: {demo}"
                first = _dataset(_group(_group(data, demo, where), "obs", where), CAMERAS["agentview"], where)
                if len(first.shape) == 4 and min(first.shape) > 0:
                    return int(first.shape[1]), int(first.shape[2])
        raise UserError(
            f"{self.path}: no demonstration has obs/{CAMERAS['agentview']} of shape [rows, height, width, 3]; {FIX}"
        )

    def _described(self, data: "h5py.Group") -> tuple[str, str]:
        """Suite and instruction, after checking the conventions that the attributes tell."""
        if missing := [name for name in ATTRIBUTES if name not in data.attrs]:
            raise UserError(
                f"{self.path}: the group 'data' lacks LIBERO's attributes {', '.join(missing)}, as copies do that were "
                "replayed and filtered; if row j of the observations was taken before action j, give --rows before"
            )
        problem, bddl, convention, arguments = (_text(data.attrs[name], self.path, name) for name in ATTRIBUTES)
        self._require("macros_image_convention", convention, CONVENTION)
        environment = parse_json(arguments, _EnvArgs, f"{self.path}: env_args", FIX)
        self._require(
            "env_args.env_kwargs.control_freq", environment.env_kwargs.control_freq, OBSERVATION_SPEC.control_hz
        )
        # Some files store the sentence in quotation marks, letter by letter, or word by word.
        sentence = parse_json(problem, _Problem, f"{self.path}: problem_info", FIX).language_instruction
        letters = all(len(part) == 1 for part in sentence)
        return Path(bddl).parent.name, ("" if letters else " ").join(sentence).strip().strip('"').strip()

    def _require(self, name: str, found: Any, expected: Any) -> None:
        if found != expected:
            raise UserError(
                f"{self.path}: {name} is {found!r}, but must be {expected!r}; render the demonstrations again"
            )

    @contextlib.contextmanager
    def _open(self) -> "Iterator[h5py.Group]":
        """The group ``data``; whatever h5py says of a bad file becomes one line."""
        with open_hdf5(self.path, FIX) as file:
            yield _group(file, "data", str(self.path))


def instruction_of(path: Path) -> str:
    """The instruction that a file's name spells, without its scene: ``KITCHEN_SCENE3_turn_on_the_stove_demo``."""
    return re.sub(r"^[A-Z0-9_]+?_SCENE\d+_", "", path.stem.removesuffix("_demo")).replace("_", " ").strip()


def _group(parent: "h5py.Group", name: str, where: str) -> "h5py.Group":
    import h5py

    if not isinstance(found := parent.get(name), h5py.Group):
        raise UserError(f"{where}: the group {name!r} is missing; {SKIP}")
    return found


def _dataset(group: "h5py.Group", name: str, where: str) -> "h5py.Dataset":
    import h5py

    if not isinstance(found := group.get(name), h5py.Dataset) or found.shape is None:
        raise UserError(f"{where}: the array {name!r} is missing; {SKIP}")
    return found


def _text(value: Any, path: Path, name: str) -> str:
    """An attribute's text, which files store as text or as bytes."""
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    if isinstance(value, bytes):
        with contextlib.suppress(UnicodeDecodeError):
            value = value.decode()
    if not isinstance(value, str):
        raise UserError(f"{path}: the attribute {name} is {type(value).__name__}, expected text; {FIX}")
    return value
