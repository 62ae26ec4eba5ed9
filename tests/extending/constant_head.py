"""An action head in one file: the mean chunk of the demonstrations, whatever the policy sees."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float32

from wmjax.models.heads.base import ActionHead, HeadConfig, HeadLoss, HeadSizes, draw_noise, masked_mean
from wmjax.models.nn.transformer import embedding_table


@dataclasses.dataclass(frozen=True)
class ConstantConfig(HeadConfig):
    """``spread`` is the standard deviation of the sampled chunks, in normalised units."""

    spread: float = 0.0


class ConstantHead(ActionHead):
    """One learned chunk; it reads nothing from the tokens."""

    Config: ClassVar[type[HeadConfig]] = ConstantConfig

    def __init__(
        self,
        config: ConstantConfig,
        sizes: HeadSizes,
        *,
        hidden_dim: int,
        action_dim: int,
        grippers: int,
        chunk: int,
        rngs: nnx.Rngs,
    ) -> None:
        self.config = config
        self.chunk = embedding_table(rngs.params(), (chunk, action_dim))

    def loss(
        self,
        tokens: Float32[Array, "batch chunk hidden"],
        action: Float32[Array, "batch chunk action"],
        mask: Bool[Array, "batch chunk"],
        key: jax.Array,
    ) -> HeadLoss:
        """The squared error."""
        error = jnp.square(self.chunk[...] - action)
        return HeadLoss(masked_mean(error, mask), {"action/arm": masked_mean(error[..., :-1], mask)})

    def sample(
        self, tokens: Float32[Array, "batch chunk hidden"], key: jax.Array
    ) -> Float32[Array, "batch chunk action"]:
        """The chunk, with noise of the configured spread."""
        shape = (tokens.shape[0], *self.chunk.shape)
        return self.chunk[...] + self.config.spread * draw_noise(key, shape)
