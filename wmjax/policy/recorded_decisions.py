"""What a policy decides on the frames of a recorded episode, whose actions it does not choose."""

import dataclasses

import jax
import numpy as np
from jaxtyping import Float32

from wmjax.core.specs import ObservationSpec, from_dict, require_equal
from wmjax.data.labels import pending_actions
from wmjax.data.observation import Observation
from wmjax.data.store import TrainingStore
from wmjax.policy.policy import Policy, load_policy
from wmjax.policy.saved import find_policy


@dataclasses.dataclass(frozen=True)
class RecordedDecisions:
    """A policy's decisions on an episode, one for each of its ``f`` frames.

    Attributes:
        action: the first raw action of each chunk.
        numbers: what the policy reports of each decision, by name: ``world/error``, how far its last prediction of this
            frame was off, ``world/copy_error``, how far a copy of the frame before would have been (both NaN at the
            first frame), ``memory/gate`` and the like. Empty for a policy that predicts nothing.
        observed: the latent of each frame in the Prophet's units, or None.
        imagined: what the policy expects of the frames after each, in the same units, or None.

    """

    action: Float32[np.ndarray, "f action"]
    numbers: dict[str, Float32[np.ndarray, " f"]]
    observed: Float32[np.ndarray, "f tokens dim"] | None
    imagined: Float32[np.ndarray, "f future tokens dim"] | None


def load_for_recording(run: str, store: TrainingStore) -> Policy:
    """A policy that decides at every frame of a store.

    Args:
        run: what :func:`wmjax.policy.saved.find_policy` takes.
        store: whose episodes it will be shown.

    Raises:
        UserError: no policy there, or its observations are not the store's: the first field that differs.

    """
    found = find_policy(run)
    own = from_dict(ObservationSpec, found.meta["specs"]["observation"], "policy")
    require_equal(store.spec, own, "the store", "the policy", ignore=("simulator",))
    return load_policy(found.folder, batch_size=1, open_loop_horizon=store.spec.frame_stride)


def decide_on_recording(policy: Policy, store: TrainingStore, index: int, *, seed: int = 0) -> RecordedDecisions:
    """Gives a policy every frame of a recorded episode, in order, and the pending actions if it takes them.

    Args:
        policy: of :func:`load_for_recording`.
        store: holds the episode.
        index: the episode's number.
        seed: of the policy's noise.

    """
    episode = store.episode(index)
    prompt, carry, key = policy.prompt(episode.meta["instruction"]), policy.initial_carry(), jax.random.key(seed)
    actions, infos = [], []
    frames = np.flatnonzero(store.frame_episode == index)
    pending = pending_actions(store, frames, policy.pending_input.steps) if policy.pending_input.steps else None
    for frame, step in enumerate(episode.frame_step):
        images, state = episode.images[frame : frame + 1], episode.state[step]
        observation = Observation(np.asarray(images)[None], state[None], prompt, np.array([frame == 0]))
        now = None if pending is None else pending[frame][None]
        carry, chunk, info = policy(carry, observation, jax.random.fold_in(key, frame)[None], pending=now)
        actions.append(np.asarray(chunk[0, 0]))
        infos.append({name: np.asarray(value[0]) for name, value in info.items()})
    together = {name: np.stack([info[name] for info in infos]) for name in infos[0]}
    observed, imagined = together.pop("observed", None), together.pop("imagined", None)
    newest = None if observed is None else observed[:, -1]
    return RecordedDecisions(np.stack(actions), {k: v for k, v in together.items() if v.ndim == 1}, newest, imagined)
