"""The frames and control steps of a sample: index arithmetic, shared by export, training and rollout.

Everything is vectorised over leading axes and stays within the episode. History is clamped to the episode's first
frame (the first frame repeats, as it does at the start of a rollout); the future and the action chunk end in a mask.
Frame indices and row indices are those of the store.
"""

import numpy as np
from jaxtyping import Bool, Int
from numpy.typing import ArrayLike

from wmjax.core.specs import ActionSpec


def history_indices(frame: ArrayLike, start: ArrayLike, history: int) -> Int[np.ndarray, "*batch history"]:
    """The ``history`` frames that end at ``frame``, oldest first, clamped to the episode's first frame ``start``."""
    back = np.arange(1 - history, 1)
    return np.maximum(np.asarray(frame)[..., None] + back, np.asarray(start)[..., None])


def clip_indices(frame: ArrayLike, start: ArrayLike, length: int = 4) -> Int[np.ndarray, "*batch length"]:
    """The frames of the clip that the latent of ``frame`` is computed from: past and present only."""
    return history_indices(frame, start, length)


def branch_clip_indices(frames: int, branch: int, length: int) -> Int[np.ndarray, "clips length"]:
    """The clips of an episode's branch frames: what was seen up to the frame a branch begins at, then the branch.

    Args:
        frames: how many the episode has.
        branch: frames of each branch.
        length: frames per clip.

    Returns:
        Indices into the episode's frames, followed by its branches one after another.

    """
    start, step = np.divmod(np.arange(frames * branch), branch)
    place = (step + 1)[:, None] + np.arange(1 - length, 1)  # 0 is the frame that the branch begins at
    seen = np.maximum(start[:, None] + place, 0)
    return np.where(place > 0, frames + start[:, None] * branch + place - 1, seen)


def future_indices(
    frame: ArrayLike, end: ArrayLike, future: int
) -> tuple[Int[np.ndarray, "*batch future"], Bool[np.ndarray, "*batch future"]]:
    """The ``future`` frames after ``frame``, and which of them exist.

    Args:
        frame: frame indices.
        end: one past the episode's last frame.
        future: how many.

    Returns:
        Indices (the last frame where the episode is over) and the mask of those that exist.

    """
    indices = np.asarray(frame)[..., None] + np.arange(1, future + 1)
    last = np.asarray(end)[..., None] - 1
    return np.minimum(indices, last), indices <= last


def earlier_indices(
    frame: ArrayLike, start: ArrayLike, history: int, earlier: int
) -> tuple[Int[np.ndarray, "*batch earlier"], Bool[np.ndarray, "*batch earlier"]]:
    """The ``earlier`` frames before the history of ``frame``, newest first, and which of them exist.

    Args:
        frame: frame indices.
        start: the episode's first frame.
        history: frames of the history, which ends at ``frame``.
        earlier: how many.

    Returns:
        Indices (the first frame where there is none) and the mask of those that exist.

    """
    indices = np.asarray(frame)[..., None] - history - np.arange(earlier)
    first = np.asarray(start)[..., None]
    return np.maximum(indices, first), indices >= first


def chunk_indices(
    row: ArrayLike, end: ArrayLike, chunk: int
) -> tuple[Int[np.ndarray, "*batch chunk"], Bool[np.ndarray, "*batch chunk"]]:
    """The control steps of an action chunk that starts at ``row``, and which of them exist.

    The first action of the chunk is the one executed on the observation of that step.
    """
    return future_indices(np.asarray(row) - 1, end, chunk)


def pad_actions(actions: np.ndarray, mask: np.ndarray, spec: ActionSpec) -> np.ndarray:
    """Replaces actions past the episode's end by "stay": the robot holds still, the last gripper commands are kept.

    Where no action of itself holds still (joint positions), the last action is repeated.

    Args:
        actions: raw, ``[*batch, chunk, dim]``, gathered with the clamped indices of :func:`chunk_indices`.
        mask: ``[*batch, chunk]``.
        spec: of the actions.

    """
    if not spec.hold:
        return actions
    hold = np.array(spec.hold, actions.dtype)
    stay = np.where(np.isin(np.arange(spec.dim), spec.grippers), actions, hold)
    return np.where(mask[..., None], actions, stay)
