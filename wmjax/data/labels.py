"""The training targets of a frame: a chunk of actions, from the store's chunk labels or from its per-step actions.

Also which later frames can be foreseen, and whether labels and branches reach as far as a training needs.
"""

import numpy as np
from jaxtyping import Bool, Float32, Int

from wmjax.core.errors import UserError
from wmjax.data.store import TrainingStore
from wmjax.data.windows import chunk_indices, future_indices, pad_actions


def check_labels(store: TrainingStore, chunk: int, delay: int) -> None:
    """Refuses a chunk that the store's labels do not contain.

    Args:
        store: the training store; anything fits one without chunk labels.
        chunk: control steps that the policy answers.
        delay: control steps between the observation and the chunk.

    Raises:
        UserError: the labels are shorter than the chunk, or there are none at the steps of the delay.

    """
    if store.action_chunk is not None:
        steps, stride = store.action_chunk.shape[1], store.spec.frame_stride
        require_labels(steps, stride, chunk, delay, f"the chunk labels in {store.folder}")


def require_labels(steps: int, stride: int, chunk: int, delay: int, what: str) -> None:
    """Refuses a chunk that labels do not contain.

    Args:
        steps: control steps of a label.
        stride: control steps from one label to the next.
        chunk: control steps that the policy answers.
        delay: control steps between the observation and the chunk.
        what: the labels, for the error.

    Raises:
        UserError: the labels are shorter than the chunk, or there are none at the steps of the delay.

    """
    if chunk > steps:
        raise UserError(
            f"model.chunk is {chunk}, but {what} have {steps} control steps; lower it, or record with "
            f"data.demonstrations.label_steps {chunk} or more"
        )
    _require_begin(delay, stride, what)


def _require_begin(delay: int, stride: int, what: str) -> None:
    """Requires that labels or branches begin at the end of the delay."""
    if delay % stride:
        raise UserError(
            f"train.delay is {delay}, but {what} begin every {stride} control steps only; choose a multiple of {stride}"
        )


def check_branches(store: TrainingStore, future: int, delay: int) -> None:
    """Refuses a future that the store's branches do not contain.

    Args:
        store: the training store.
        future: frames that follow the present one.
        delay: control steps between the observation and the branch.

    Raises:
        UserError: the store has no branches, they are too short, or none begins at the end of the delay.

    """
    branch = 0 if store.branch_images is None else store.branch_images.shape[1]
    require_branches(branch, store.spec.frame_stride, future, delay, f"the branches in {store.folder}")


def require_branches(branch: int, stride: int, future: int, delay: int, what: str) -> None:
    """Refuses a future that branches do not contain.

    Args:
        branch: frames of a branch.
        stride: control steps between frames.
        future: frames that follow the present one.
        delay: control steps between the observation and the branch.
        what: the branches, for the error.

    Raises:
        UserError: they are too short, or none begins at the end of the delay.

    """
    _require_begin(delay, stride, what)
    needed = future - delay // stride
    if branch < needed:
        raise UserError(
            f"memory.target is 'branch' with model.prophet.future {future} and train.delay {delay}, which need "
            f"{needed} frames of a branch, but {what} have {branch}; record with "
            f"data.demonstrations.branch_frames {needed}, or set model.memory.target to future"
        )


def chunk_labels(
    store: TrainingStore,
    frames: Int[np.ndarray, " n"],
    chunk: int,
    delay: int,
    ends: Int[np.ndarray, " episodes"] | None = None,
) -> tuple[Float32[np.ndarray, "n chunk action"], Bool[np.ndarray, "n chunk"]]:
    """The actions to learn of some frames, raw, and which of them exist.

    With chunk labels the target of frame t under a delay of d control steps is the label of the frame d steps later:
    what the expert would do from there on. Otherwise it is the actions from t + d on, as they were recorded.

    Args:
        store: the training store.
        frames: indices of its frames.
        chunk: control steps of the target.
        delay: control steps between a frame and the target's first action.
        ends: from :func:`label_ends`, for callers that ask often.

    Returns:
        The actions, "stay" where there is none, and the mask.

    """
    end = (label_ends(store) if ends is None else ends)[store.frame_episode[frames]]
    if store.action_chunk is None:
        rows, mask = chunk_indices(store.frame_row[frames] + delay, end, chunk)
        return pad_actions(store.action[rows], mask, store.action_spec), mask
    ahead = delay // store.spec.frame_stride
    later, exists = future_indices(frames + ahead - 1, end, 1)
    mask = np.repeat(exists, chunk, axis=1)
    return pad_actions(store.action_chunk[later[:, 0], :chunk], mask, store.action_spec), mask


def pending_actions(
    store: TrainingStore, frames: Int[np.ndarray, " n"], delay: int
) -> Float32[np.ndarray, "n delay action"]:
    """The actions that are still to be executed at some frames, raw: those of the next ``delay`` control steps.

    They are the actions that the recording executed, noise and holding still included, not the labels. Behind the
    episode's end, where no frame has a label either, the robot stays where it is.

    Args:
        store: the training store.
        frames: indices of its frames.
        delay: control steps between a frame and the first action of its chunk.

    """
    entries = [store.episodes[index] for index in store.frame_episode[frames]]
    end = np.array([entry["step_start"] + entry["length"] for entry in entries])
    rows, mask = chunk_indices(store.frame_row[frames], end, delay)
    return pad_actions(store.executed[rows], mask, store.action_spec)


def undisturbed_between(
    store: TrainingStore, frames: Int[np.ndarray, " n"], others: Int[np.ndarray, "n others"]
) -> Bool[np.ndarray, "n others"]:
    """Which other frames, later or earlier ones, have no injected control step between them and the present.

    Args:
        store: the training store; without marks nothing counts as injected.
        frames: indices of the present frames.
        others: indices of frames of the same episodes.

    """
    if store.injected is None:
        return np.ones(others.shape, bool)
    before = np.concatenate([[0], np.cumsum(store.injected)])
    return before[store.frame_row[others]] == before[store.frame_row[frames]][:, None]


def label_ends(store: TrainingStore) -> Int[np.ndarray, " episodes"]:
    """Where each episode's labels end: its last frame's index plus one, or, without chunk labels, its last step's."""
    start, count = ("step_start", "length") if store.action_chunk is None else ("frame_start", "num_frames")
    return np.array([episode[start] + episode[count] for episode in store.episodes])
