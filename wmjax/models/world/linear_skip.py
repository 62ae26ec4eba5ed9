"""The linear part of a Prophet, which maps each position's history to its changes in the future frames.

Its form is that of the ridge regression that diagnoses compare the Prophet with
(:mod:`wmjax.diagnostics.prophet_skill`), with the matrix of each position factored into two of a smaller rank:
reduced-rank regression (Izenman, 1975).
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float32

from wmjax.models.nn.transformer import embedding_table


class LinearSkip(nnx.Module):
    """For every position ``(features @ down) @ up + bias``, in float32; zero until trained or fitted."""

    def __init__(self, rank: int, *, history: int, future: int, tokens: int, dim: int, rngs: nnx.Rngs):
        features, outputs = 2 * history * dim, future * dim
        self.down = embedding_table(rngs.params(), (tokens, features, rank), features**-0.5)
        self.up = embedding_table(rngs.params(), (tokens, rank, outputs), 0.0)
        # The positions are stacked as layers are: a vector of each position is not a matrix, and does not decay.
        self.bias = nnx.Param(jnp.zeros((tokens, outputs)), out_sharding=("layers", None), eager_sharding=False)

    def __call__(
        self, history: Float32[Array, "batch history tokens dim"]
    ) -> Float32[Array, "batch future tokens dim"]:
        """The predicted changes since the newest frame of the history."""
        batch, _, tokens, dim = history.shape
        exact = jax.lax.Precision.HIGHEST  # as that of dense layers in float32
        codes = jnp.einsum("btf,tfr->btr", linear_features(history), self.down[...], precision=exact)
        changes = jnp.einsum("btr,tro->bto", codes, self.up[...], precision=exact) + self.bias[...]
        return jnp.moveaxis(changes.reshape(batch, tokens, -1, dim), 1, 2)


def linear_features(
    history: Float32[Array, "batch history tokens dim"],
) -> Float32[Array, "batch tokens features"]:
    """Each position's history beside that of the mean over positions, frame by frame, oldest first.

    The mean tells every position where the arm is.
    """
    mean = jnp.broadcast_to(history.mean(2, keepdims=True), history.shape)
    both = jnp.moveaxis(jnp.concatenate([history, mean], axis=-1), 1, 2)
    return both.reshape(*both.shape[:2], -1)
