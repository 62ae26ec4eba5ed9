"""The flow head of the predecessor, as a class that ``model.head.kind`` names.

It differs from :class:`wmjax.models.heads.flow.FlowHead` in four ways: an MLP of 256 channels sees one step of the
chunk at a time, the hidden states are not normalised, each step of the chunk has its own flow time, and step i of N of
the sampler evaluates the velocity at t = (i + 1) / N. The gripper is part of the chunk.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32

from wmjax.core.settings import Depth, Width
from wmjax.models.heads.base import (
    ActionHead,
    HeadConfig,
    HeadLoss,
    HeadSizes,
    arm_and_gripper,
    draw_noise,
    masked_mean,
)
from wmjax.models.heads.flow import TIME_FEATURES, time_features
from wmjax.models.nn.transformer import Mlp

NOISE, TIME = 0, 1
"""Names folded into the loss's key."""


@dataclasses.dataclass(frozen=True)
class PriorFlowConfig(HeadConfig):
    """``width`` is that of the MLP, ``steps`` are those of the sampler; one draw of noise and times per sample."""

    width: Width = 256
    steps: Depth = 10

    @property
    def stochastic(self) -> bool:
        """True, because sampling starts from noise."""
        return True


class PriorFlowHead(ActionHead):
    """Rectified flow on the chunk, each of its steps by itself."""

    Config: ClassVar[type[HeadConfig]] = PriorFlowConfig

    def __init__(
        self,
        config: PriorFlowConfig,
        sizes: HeadSizes,
        *,
        hidden_dim: int,
        action_dim: int,
        grippers: int,
        chunk: int,
        rngs: Any,
    ) -> None:
        self.config, self.action_dim, self.grippers = config, action_dim, grippers
        inputs = hidden_dim + action_dim + TIME_FEATURES
        self.mlp = Mlp(inputs, config.width, action_dim, dtype=jnp.float32, rngs=rngs)

    def velocity(
        self,
        noisy: Float32[Array, "batch chunk action"],
        time: Float32[Array, "batch chunk"],
        tokens: Float32[Array, "batch chunk hidden"],
    ) -> Float32[Array, "batch chunk action"]:
        """The predicted ``action - noise`` of each step, from its own token and flow time alone."""
        return self.mlp(jnp.concatenate([tokens, noisy, time_features(time)], axis=-1))

    def loss(
        self,
        tokens: Float32[Array, "batch chunk hidden"],
        action: Float32[Array, "batch chunk action"],
        mask: Bool[Array, "batch chunk"],
        key: jax.Array,
    ) -> HeadLoss:
        """Mean squared error of the velocity, with uniform flow times."""
        noise = jax.random.normal(jax.random.fold_in(key, NOISE), action.shape)
        time = jax.random.uniform(jax.random.fold_in(key, TIME), action.shape[:2])
        noisy = (1.0 - time[..., None]) * noise + time[..., None] * action
        values = jnp.square(self.velocity(noisy, time, tokens) - (action - noise))
        return HeadLoss(masked_mean(values, mask), arm_and_gripper(values, mask, regressed=self.grippers))

    def sample(
        self, tokens: Float32[Array, "batch chunk hidden"], key: jax.Array
    ) -> Float32[Array, "batch chunk action"]:
        """Euler steps from noise, each with the velocity of the time at which it ends."""
        size = 1.0 / self.config.steps

        def step(i: Array, x: Array) -> Array:
            time = jnp.full(x.shape[:2], size) * (i + 1)
            return x + size * self.velocity(x, time, tokens)

        return jax.lax.fori_loop(0, self.config.steps, step, draw_noise(key, (*tokens.shape[:2], self.action_dim)))
