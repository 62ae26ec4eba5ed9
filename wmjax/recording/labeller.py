"""DAgger in a worker process: labels every state that a policy reaches with the expert's action.

The method is DAgger (Ross, Gordon and Bagnell 2011, "A reduction of imitation learning and structured
prediction to no-regret online learning"). The labels are those of a recording (:mod:`wmjax.recording.demonstration`).
"""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Float64, UInt8

from wmjax.recording.demonstration import undisturbed
from wmjax.recording.expert import Expert
from wmjax.sim.env import LiberoEnv


@dataclasses.dataclass(frozen=True)
class Labelled:
    """A state that a policy reached, with the expert's labels.

    Attributes:
        action: what the policy executed last; None at the start of an episode.
        state: proprioception.
        label: the expert's action.
        image: of the frame that falls due here, else None.
        chunk: the expert's next actions if nothing disturbed it, where a frame falls due, else None.
        start: of the first state of an episode: its full simulator state and what the recorder notes of an episode.

    """

    action: Float32[np.ndarray, " action"] | None
    state: Float32[np.ndarray, " state"]
    label: Float32[np.ndarray, " action"]
    image: UInt8[np.ndarray, "cameras height width 3"] | None = None
    chunk: Float32[np.ndarray, "label_steps action"] | None = None
    start: tuple[Float64[np.ndarray, " values"], dict[str, Any]] | None = None


class Labeller:
    """Labels the states of one episode, as a :class:`wmjax.sim.worker.Watcher`.

    The simulation is stepped to label a frame's chunk and then restored, so the policy's episode is not changed.

    Args:
        env: of the episode, which has settled.
        label_steps: control steps of a chunk.

    """

    def __init__(self, env: LiberoEnv, label_steps: int) -> None:
        self._env, self._label_steps = env, label_steps
        self._expert = Expert(env)
        self._step = 0

    def observe(
        self, action: Float[np.ndarray, " action"] | None, image: UInt8[np.ndarray, "cameras height width 3"] | None
    ) -> Labelled:
        """The labels of the current state."""
        env, due = self._env, self._step % self._env.spec.frame_stride == 0
        start = (env.settled_state, self._about()) if self._step == 0 else None
        self._step += 1
        executed = None if action is None else np.asarray(action, np.float32)
        state, label = env.state(), self._expert.act().astype(np.float32)
        if not due:
            return Labelled(executed, state, label, start=start)
        image = env.render() if image is None else image.copy()  # nothing is rendered for a policy near the limit
        now = env.sim_state()
        chunk, _ = undisturbed(env, self._expert, self._label_steps)
        env.restore(now)
        return Labelled(executed, state, label, image, chunk, start)

    def _about(self) -> dict[str, Any]:
        """The metadata of an episode beside its identity."""
        style = self._expert.style
        return {
            "instruction": self._env.instruction,
            "settled_hash": self._env.settled_hash,
            "fixture_poses": self._env.fixture_poses(),
            "grasp": None if style is None else dataclasses.asdict(style),
        }
