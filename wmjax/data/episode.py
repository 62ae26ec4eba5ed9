"""One finished episode in memory, and the checks that keep invalid data out of the training store."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32, UInt8

from wmjax.core.errors import UserError, require_unicode
from wmjax.core.files import read_npz, write_npz
from wmjax.core.reading import parse_json
from wmjax.core.specs import ActionSpec, ObservationSpec

REQUIRED_META = ("suite", "task_id", "instruction")


@dataclasses.dataclass
class EpisodeData:
    """One episode: ``f`` frames, ``n`` control steps.

    ``action`` is the label to learn, ``executed`` what the robot did (they differ in perturbed demos), both raw
    actions of an :class:`wmjax.core.specs.ActionSpec`. ``frame_step`` is the control step
    of each frame, counted from the episode's start. ``settled_state`` is the full simulator state after the
    settle steps (empty for imported data). ``meta`` holds JSON values: suite, task_id, instruction (needed),
    seed, init, perturbation, settled_hash, success_step and other values of the recorder.

    ``action_chunk``, where it is recorded, is what to learn of each frame: the ``label_steps`` actions that the expert
    would execute from there on if nothing disturbed it. ``injected`` marks the control steps at which the recorder
    provoked a failure: what was executed then is not a policy's choice, and what comes of it cannot be foreseen.
    ``branch_images``, where they are recorded, are the next frames of each frame's *branch*: the future in which the
    expert acts from there on and nothing disturbs it.
    """

    images: UInt8[np.ndarray, "f cameras height width 3"]
    frame_step: Int32[np.ndarray, " f"]
    state: Float32[np.ndarray, "n state"]
    action: Float32[np.ndarray, "n action"]
    executed: Float32[np.ndarray, "n action"]
    settled_state: Float64[np.ndarray, " s"]
    meta: dict[str, Any]
    action_chunk: Float32[np.ndarray, "f label_steps action"] | None = None
    injected: Bool[np.ndarray, " n"] | None = None
    branch_images: UInt8[np.ndarray, "f branch cameras height width 3"] | None = None

    @property
    def length(self) -> int:
        """Control steps."""
        return len(self.state)


ARRAYS = ("images", "frame_step", "state", "action", "executed", "settled_state")
OPTIONAL_ARRAYS = ("action_chunk", "injected", "branch_images")
DTYPES = {
    "images": np.uint8,
    "frame_step": np.int32,
    "state": np.float32,
    "action": np.float32,
    "executed": np.float32,
    "settled_state": np.float64,
    "action_chunk": np.float32,
    "injected": np.bool_,
    "branch_images": np.uint8,
}


def save_episode(path: Path, episode: EpisodeData) -> None:
    """Writes an episode atomically as .npz, the meta as JSON text inside it."""
    present = [*ARRAYS, *(name for name in OPTIONAL_ARRAYS if getattr(episode, name) is not None)]
    arrays: dict[str, np.ndarray] = {name: np.asarray(getattr(episode, name), DTYPES[name]) for name in present}
    meta = np.frombuffer(json.dumps(episode.meta, allow_nan=False).encode(), np.uint8)
    write_npz(path, {**arrays, "meta": meta})


def load_episode(path: Path) -> EpisodeData:
    """Reads what :func:`save_episode` wrote.

    Raises:
        UserError: missing or damaged file.

    """
    arrays = read_npz(path, (*ARRAYS, "meta"))
    surplus = sorted(set(arrays) - {*ARRAYS, *OPTIONAL_ARRAYS, "meta"})
    wrong = [name for name in DTYPES if name in arrays and arrays[name].dtype != DTYPES[name]]
    if surplus or wrong:
        raise UserError(f"{path}: arrays {', '.join(surplus + wrong)} are not an episode's; delete the file")
    meta = parse_json(arrays.pop("meta").tobytes(), dict[str, Any], f"{path}: meta", "delete the file, record it again")
    return EpisodeData(**arrays, meta=meta)


def check_episode(episode: EpisodeData, spec: ObservationSpec | None, action: ActionSpec | None, where: str) -> None:
    """Refuses an episode that must not be trained on.

    Args:
        episode: what was recorded or imported.
        spec: the dataset's observations; None checks only what needs no spec.
        action: the dataset's actions; None as well.
        where: the file or episode, for the error.

    Raises:
        UserError: empty instruction, wrong shapes or lengths, NaN or infinity, an action outside its bounds.

    """
    for key in REQUIRED_META:
        if key not in episode.meta:
            raise UserError(f"{where}: meta field {key!r} is missing; a training episode needs it, add it")
    instruction = episode.meta["instruction"]
    if not isinstance(instruction, str) or not instruction.strip():
        raise UserError(f"{where}: instruction is {instruction!r}; give every task a non-empty instruction")
    require_unicode(instruction, f"{where}: instruction")
    _check_columns(episode, spec, action, where)
    _check_frames(episode, where)
    _check_optional(episode, action, where)
    if spec is not None:
        _check_against_spec(episode, spec, where)


def _check_columns(episode: EpisodeData, spec: ObservationSpec | None, action: ActionSpec | None, where: str) -> None:
    """Shapes and values of the per-step columns."""
    n = episode.length
    if n == 0:
        raise UserError(f"{where}: the episode has 0 control steps; drop it")
    state_dim = episode.state.shape[-1] if spec is None else spec.state_dim
    action_dim = episode.action.shape[-1] if action is None else action.dim
    for name, dim in (("state", state_dim), ("action", action_dim), ("executed", action_dim)):
        column = getattr(episode, name)
        if column.shape != (n, dim):
            raise UserError(f"{where}: {name} has shape {column.shape}, expected {(n, dim)}; fix the source columns")
        bad = np.argwhere(~np.isfinite(column))
        if len(bad):
            row, col = bad[0]
            raise UserError(f"{where}: {name}[{row}, {col}] is {column[row, col]}; repair or drop the episode")
        if name != "state":
            _check_bounds(column, action, f"{where}: {name}")


def _check_bounds(values: Float32[np.ndarray, "*shape action"], action: ActionSpec | None, where: str) -> None:
    """Refuses actions that the controller would clip: they are in other units."""
    if action is None or not action.low:
        return
    outside = np.argwhere((values < np.array(action.low)) | (values > np.array(action.high)))
    if len(outside):
        at = tuple(outside[0].tolist())
        low, high = action.low[at[-1]], action.high[at[-1]]
        raise UserError(
            f"{where}{list(at)} is {values[at]:.9g}, outside [{low:g}, {high:g}]; actions must be as sent to the "
            f"controller ({action.definition}), rescale or clip them"
        )


def _check_optional(episode: EpisodeData, action: ActionSpec | None, where: str) -> None:
    """Shapes and values of the arrays that an episode may lack."""
    chunk, injected, frames = episode.action_chunk, episode.injected, len(episode.images)
    if chunk is not None:
        dim = episode.action.shape[-1]
        if chunk.ndim != 3 or chunk.shape[0] != frames or chunk.shape[1] < 1 or chunk.shape[2] != dim:
            raise UserError(
                f"{where}: action_chunk has shape {chunk.shape}, expected [{frames}, label_steps, {dim}], one "
                "chunk for each image; record the episode again"
            )
        bad = np.argwhere(~np.isfinite(chunk))
        if len(bad):
            at = tuple(bad[0].tolist())
            raise UserError(f"{where}: action_chunk{list(at)} is {chunk[at]}; record the episode again")
        _check_bounds(chunk, action, f"{where}: action_chunk")
    if injected is not None and injected.shape != (episode.length,):
        raise UserError(
            f"{where}: injected has shape {injected.shape}, expected {(episode.length,)}, one flag for each control "
            "step; record the episode again"
        )
    branch = episode.branch_images
    if branch is not None and (branch.ndim != 6 or not branch.shape[1] or branch[:, 0].shape != episode.images.shape):
        raise UserError(
            f"{where}: branch_images has shape {branch.shape}, expected [{frames}, branch_frames, "
            f"{', '.join(map(str, episode.images.shape[1:]))}], the frames of a branch for each image; record the "
            "episode again"
        )


def _check_frames(episode: EpisodeData, where: str) -> None:
    """Images and their control steps belong together."""
    images, steps = episode.images, episode.frame_step
    if images.ndim != 5 or images.shape[-1] != 3 or len(images) == 0:
        raise UserError(f"{where}: images have shape {images.shape}, expected [frames, cameras, height, width, 3]")
    if steps.shape != (len(images),):
        raise UserError(f"{where}: frame_step has shape {steps.shape} for {len(images)} images; give one step each")
    if steps[0] < 0 or steps[-1] >= episode.length or np.any(np.diff(steps) <= 0):
        raise UserError(f"{where}: frame_step must increase within [0, {episode.length}), it is {steps.tolist()}")


def _check_against_spec(episode: EpisodeData, spec: ObservationSpec, where: str) -> None:
    """Cameras, size and frame timing are the dataset's."""
    size = spec.image_size
    expected = (len(spec.cameras), size, size, 3)
    if episode.images.shape[1:] != expected:
        raise UserError(
            f"{where}: images have shape {episode.images.shape[1:]}, expected {expected} "
            f"(cameras {', '.join(spec.cameras)}, image_size {size}); record or convert it again with that size"
        )
    stride, first = spec.frame_stride, int(episode.frame_step[0])
    due = np.arange(first, episode.length, stride)
    if first >= stride or not np.array_equal(due, episode.frame_step):
        raise UserError(
            f"{where}: frame_step has {len(episode.frame_step)} frames starting at {first}, frame_stride {stride} and "
            f"{episode.length} steps need frames at {first}, {first + stride}, ... ({len(due)}); record it again"
        )
