"""What a training run carries from step to step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Int32


class TrainState(NamedTuple):
    """Trainable parameters, their exponential moving average, optimizer moments; all float32."""

    step: Int32[Array, ""]
    params: nnx.State
    ema: nnx.State | None
    opt: Any


def initial_state(params: nnx.State, optimizer: optax.GradientTransformation) -> TrainState:
    """Step 0: the average starts at the parameters."""
    return TrainState(jnp.zeros((), jnp.int32), params, jax.tree.map(jnp.copy, params), optimizer.init(params))
