"""A policy whose answers reveal any mix-up of rows, frames or keys."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.rollout.fakes import ACTIONS, SPEC
from wmjax.data.observation import Observation, Prompt


class FakePolicy:
    """Acts on a running mean of all frames seen in the episode, and on noise: sensitive to any mix-up of rows."""

    future_frames = 0
    corruption = "none"
    realtime, pending_steps, committed = "none", 0, 0
    observation_spec = SPEC
    action_spec = ACTIONS

    def __init__(self, batch_size: int = 2, frames_per_decision: int = 2) -> None:
        self.batch_size, self.frames_per_decision = batch_size, frames_per_decision
        self._act = jax.jit(self._step)

    def initial_carry(self) -> dict[str, jax.Array]:
        return {"mean": jnp.zeros(self.batch_size), "frames": jnp.zeros((self.batch_size, 2), jnp.int32)}

    def prompt(self, instruction: str) -> Prompt:
        tokens = np.array([[ord(letter) for letter in instruction[-8:]]], np.int32)
        return {"tokens": tokens}

    def __call__(self, carry, observation: Observation, keys, future=None):
        assert future is None
        return self._act(carry, observation, keys)

    @staticmethod
    def _step(carry, observation, keys):
        first = observation.first
        mean = jnp.where(first, 0.0, carry["mean"])
        frames = jnp.where(first[:, None], 0, carry["frames"])
        for i in range(observation.images.shape[1]):
            mean = 0.7 * mean + 0.3 * observation.images[:, i, 0, 0, 0, :2].astype(jnp.float32).sum(-1)
        frames = frames.at[:, 0].add(observation.images.shape[1]).at[:, 1].add(1)
        noise = jax.vmap(lambda key: jax.random.normal(key, (8, 7)))(keys)
        drift = 0.12 + 0.15 * jnp.sin(mean + observation.prompt["tokens"][:, -1] + observation.state[:, 0])
        chunk = jnp.clip(0.2 * noise + drift[:, None, None], -1, 1)
        return {"mean": mean, "frames": frames}, chunk, {"mean": mean, "decisions": frames[:, 1]}


class Continuing(FakePolicy):
    """The fake policy, whose chunks go on from the last action that is executed before them.

    Of its chunks of 8, the first ``delay`` steps are those of the pending actions.
    """

    realtime = "rtc"

    def __init__(self, batch_size: int = 2, horizon: int = 4, delay: int = 3) -> None:
        super().__init__(batch_size, horizon // SPEC.frame_stride)
        self.committed, self.pending_steps = delay, 8 - horizon
        self.calls: list[np.ndarray | None] = []

    def __call__(self, carry, observation, keys, future=None, pending=None):
        self.calls.append(pending)
        carry, chunk, info = super().__call__(carry, observation, keys)
        if pending is not None:
            chunk = jnp.concatenate([pending, jnp.repeat(pending[:, -1:], chunk.shape[1] - pending.shape[1], 1)], 1)
        return carry, chunk, info


class Told(FakePolicy):
    """The fake policy, whose chunks are moved by the pending actions of the ``delay`` that it was trained for."""

    def __init__(self, batch_size: int = 2, horizon: int = 4, delay: int = 8) -> None:
        super().__init__(batch_size, horizon // SPEC.frame_stride)
        self.pending_steps = delay

    def __call__(self, carry, observation, keys, future=None, pending=None):
        if pending is None:
            assert np.all(observation.first)
            pending = np.tile(np.array(ACTIONS.hold, np.float32), (self.batch_size, self.pending_steps, 1))
        weights = 0.1 + 0.01 * np.arange(self.pending_steps, dtype=np.float32)
        carry, chunk, info = super().__call__(carry, observation, keys)
        return carry, chunk + jnp.einsum("bsa,s->ba", pending, weights)[:, None], info
