"""The layers that the vision tower and the text decoder share."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from wmjax.models.backbones.qwen2_5_vl.config import Qwen2_5_VLConfig
from wmjax.models.nn.lora import AdapterInputs, Linear
from wmjax.models.nn.precision import spread
from wmjax.models.nn.stack import annotate


class RMSNorm(nnx.Module):
    """Root-mean-square normalisation (arXiv:1910.07467), in float32; the weight multiplies after the cast back."""

    def __init__(self, width: int, epsilon: float, *, rngs: nnx.Rngs, param_dtype: str = "float32") -> None:
        ones = annotate(nnx.initializers.ones_init(), None)
        self.scale = nnx.Param(ones(rngs.params(), (width,), jnp.dtype(param_dtype)))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "... width"]) -> Float[Array, "... width"]:
        """Normalises the last axis."""
        wide = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.epsilon)
        return spread(self.scale[...], x) * (wide * inverse).astype(x.dtype)


class SwiGLU(nnx.Module):
    """``down(silu(gate(x)) * up(x))`` (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, width: int, mlp: int, *, linear: Any, rngs: nnx.Rngs, bias: bool, out_gain: float) -> None:
        make = functools.partial(linear, rngs=rngs, bias=bias)
        self.gate_proj = make(width, mlp, ("embed", "mlp"), name="gate_proj")
        self.up_proj = make(width, mlp, ("embed", "mlp"), name="up_proj")
        self.down_proj = make(mlp, width, ("mlp", "embed"), name="down_proj", gain=out_gain)

    def __call__(self, x: Float[Array, "... width"], adapter: AdapterInputs) -> Float[Array, "... width"]:
        """Applies the layer; ``adapter`` goes to its projections."""
        return self.down_proj(jax.nn.silu(self.gate_proj(x, adapter)) * self.up_proj(x, adapter), adapter)


def linear_factory(config: Qwen2_5_VLConfig, adapted: tuple[str, ...]) -> Any:
    """:class:`Linear` with the dtypes of ``config`` and adapters on the named projections."""
    return functools.partial(
        Linear, lora=config.lora, adapted=adapted, dtype=config.dtype, param_dtype=config.param_dtype
    )
