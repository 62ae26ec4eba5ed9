"""Decisions of a policy on noise, to be timed."""

from collections.abc import Callable

import jax
import numpy as np

from wmjax.data.observation import Observation
from wmjax.policy.policy import Policy

INSTRUCTION = "pick up the black bowl next to the plate and place it on the plate"


def decide(policy: Policy) -> Callable[[], jax.Array]:
    """A function that makes one decision on random frames, waits for it and returns the chunk."""
    rng, spec, batch = np.random.default_rng(0), policy.observation_spec, policy.batch_size
    shape = (batch, policy.frames_per_decision, len(spec.cameras), spec.image_size, spec.image_size, 3)
    one = policy.prompt(INSTRUCTION)
    observation = Observation(
        rng.integers(0, 256, shape, np.uint8),
        rng.normal(size=(batch, spec.state_dim)).astype(np.float32),
        jax.tree.map(lambda field: np.repeat(field, batch, 0), one),
        np.zeros(batch, bool),
    )
    keys = jax.random.split(jax.random.key(0), batch)
    box = [policy.initial_carry()]

    def call() -> jax.Array:
        box[0], chunk, _ = policy(box[0], observation, keys)
        return jax.block_until_ready(chunk)

    return call
