"""LIBERO's original demonstrations: one HDF5 file per task, as its ``scripts/create_dataset.py`` writes them.

``data/demo_i`` holds ``actions [n, dim]`` and ``obs/...`` of as many rows, but **row j of the observations was taken
after action j**: the script appends what ``env.step(action)`` returned. The observation before action j + 1 is row j,
so an episode of n rows becomes n - 1 control steps. Taken as they are, the rows would teach the policy the action that
has just been executed. Images are raw MuJoCo images (``macros_image_convention`` "opengl"), and orientations are
robosuite's axis-angle already. Actions and the gripper's sign are those of every published LIBERO dataset.
"""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32, UInt8

from wmjax.core.errors import UserError
from wmjax.core.location import local
from wmjax.core.specs import PUBLISHED, ObservationSpec
from wmjax.data.episode import EpisodeData
from wmjax.data.formats.importer import Progress, convert_episodes, refuse_finished, require_positive
from wmjax.data.observation import orient_image, resize_image
from wmjax.data.store import TrainingStore
from wmjax.sim.libero import ACTION_SPEC, OBSERVATION_SPEC

if TYPE_CHECKING:
    import h5py

CAMERAS = {"agentview": "agentview_rgb", "robot0_eye_in_hand": "eye_in_hand_rgb"}
STATE = {"ee_pos": 3, "ee_ori": 3, "gripper_states": 2}
"""Columns of the state, in the order of ``ObservationSpec.state``, and their sizes."""
CONVENTION = "opengl"


def find_files(source: Path) -> list[Path]:
    """The HDF5 files of a folder and of those below it, sorted, or the given one; empty if there are none."""
    if source.is_file():
        return [source] if source.suffix == ".hdf5" else []
    return sorted(source.rglob("*.hdf5")) if source.is_dir() else []


def convert(
    source: Path,
    out: Path,
    *,
    image_size: int = 112,
    frame_stride: int = 4,
    max_episodes: int | None = None,
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
        max_episodes: only the first so many.
        progress: called with episodes done and their total.

    Raises:
        UserError: everything that is wrong with the files; ``out`` holds a store or another conversion.

    """
    out = local(out)
    refuse_finished(out)
    require_positive(image_size, frame_stride, max_episodes)
    files = [DemonstrationFile(path, index) for index, path in enumerate(find_files(source))]
    if not files:
        raise UserError(f"{source}: no .hdf5 files there; give the folder of LIBERO's demonstrations")
    sizes = {file.image_size for file in files}
    if len(sizes) > 1:
        raise UserError(f"{source}: files have images of different sizes {sorted(sizes)}; convert them separately")
    spec = dataclasses.replace(
        OBSERVATION_SPEC,
        cameras=tuple(CAMERAS),
        image_size=image_size,
        resize_filter="none" if sizes == {(image_size, image_size)} else "bilinear",
        frame_stride=frame_stride,
        reflection=True,
        mesh_detail_mm=0.0,
        simulator=f"{PUBLISHED} in LIBERO's HDF5 files",
        drawn_size=0 if sizes == {(image_size, image_size)} else min(sizes)[0],
    )
    readers = {
        f"task-{file.task:03d}-{demo}": functools.partial(file.episode, demo, spec)
        for file in files
        for demo in file.demos
    }
    chosen = dict(list(readers.items())[:max_episodes])
    names = [[str(file.path.relative_to(source.parent)), file.path.stat().st_size] for file in files]
    return convert_episodes(out, spec, ACTION_SPEC, {"source": str(source), "files": names}, chosen, progress)


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

    def __init__(self, path: Path, task: int) -> None:
        self.path, self.task = path, task
        with self._open() as data:
            self.instruction = self._instruction(data)
            self.suite = Path(str(data.attrs["bddl_file_name"])).parent.name
            self.demos = sorted(data.keys(), key=lambda name: (len(name), name))
            if not self.demos:
                raise UserError(f"{path}: no demonstrations in the group 'data'; download the file again")
            self._require("macros_image_convention", str(data.attrs["macros_image_convention"]), CONVENTION)
            rate = json.loads(str(data.attrs["env_args"]))["env_kwargs"]["control_freq"]
            self._require("env_args.env_kwargs.control_freq", rate, OBSERVATION_SPEC.control_hz)
            first = data[self.demos[0]]["obs"][CAMERAS["agentview"]]
            self.image_size = (int(first.shape[1]), int(first.shape[2]))

    def episode(self, demo: str, spec: ObservationSpec) -> EpisodeData:
        """One demonstration in the store's form: row j of the observations with action j + 1.

        Raises:
            UserError: missing columns, columns of different length, shape or type, or damaged data.

        """
        with self._open() as data:
            group = data[demo]
            actions = self._column(group, "actions", (ACTION_SPEC.dim,), demo)
            state = np.concatenate([self._column(group["obs"], key, (n,), demo) for key, n in STATE.items()], axis=1)
            length = len(actions) - 1
            if length < 1 or len(state) != len(actions):
                raise UserError(f"{self.path}: {demo} has {len(actions)} actions and {len(state)} states; drop it")
            steps = np.arange(0, length, spec.frame_stride, dtype=np.int32)
            images = [self._images(group["obs"], key, steps, len(actions), demo, spec) for key in CAMERAS.values()]
        return EpisodeData(
            images=np.stack(images, axis=1),
            frame_step=steps,
            state=state[:-1],
            action=actions[1:],
            executed=actions[1:],
            settled_state=np.zeros(0),
            meta={
                "suite": f"{self.suite} (HDF5)",
                "task_id": self.task,
                "instruction": self.instruction,
                "source_episode": demo,
                "source_file": self.path.name,
            },
        )

    def _column(self, group: "h5py.Group", name: str, shape: tuple[int, ...], demo: str) -> Float32[np.ndarray, "n d"]:
        values = group[name][()]
        if values.shape[1:] != shape or values.dtype.kind != "f":
            raise UserError(
                f"{self.path}: {demo}/{name} is {values.dtype} {values.shape}, expected rows of {shape[0]} floats; "
                f"download the file again"
            )
        return values.astype(np.float32)

    def _images(
        self, group: "h5py.Group", name: str, steps: np.ndarray, rows: int, demo: str, spec: ObservationSpec
    ) -> UInt8[np.ndarray, "n size size 3"]:
        """Rotated and resized images at some rows."""
        images = group[name]
        expected = (rows, *self.image_size, 3)
        if images.shape != expected or images.dtype != np.uint8:
            raise UserError(
                f"{self.path}: {demo}/{name} is {images.dtype} {images.shape}, expected uint8 {expected}; "
                f"download the file again"
            )
        return np.stack([resize_image(orient_image(raw), spec.image_size) for raw in images[steps]])

    def _instruction(self, data: "h5py.Group") -> str:
        """Some files store the sentence in quotation marks, or letter by letter."""
        text = json.loads(str(data.attrs["problem_info"]))["language_instruction"]
        return "".join(text).strip().strip('"').strip()

    def _require(self, name: str, found: Any, expected: Any) -> None:
        if found != expected:
            raise UserError(
                f"{self.path}: {name} is {found!r}, but must be {expected!r}; render the demonstrations again"
            )

    @contextlib.contextmanager
    def _open(self) -> "Iterator[h5py.Group]":
        """The group ``data``; whatever h5py says of a bad file becomes one line."""
        import h5py

        try:
            with h5py.File(self.path, "r") as file:
                yield file["data"]
        except (KeyError, json.JSONDecodeError, TypeError) as error:
            reason = str(error).strip("'\"")
            raise UserError(
                f"{self.path}: something that LIBERO's files contain is missing or damaged ({reason}); "
                f"download the file again"
            ) from error
        except OSError as error:
            raise UserError(f"{self.path}: not a readable HDF5 file ({error}); download it again") from error
