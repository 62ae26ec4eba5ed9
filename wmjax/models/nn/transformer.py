"""A small pre-norm transformer block, shared by the Prophet, the world memory and the flow head.

The backbones have separate layers, because those must match published checkpoints.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from wmjax.models.nn.attention import attention
from wmjax.models.nn.layout import split_batch
from wmjax.models.nn.precision import matmul, spread
from wmjax.models.nn.stack import annotate

Axes = tuple[str | None, ...]
KeyValue = tuple[Float[Array, "batch source heads head"], Float[Array, "batch source heads head"]]


class Dense(nnx.Linear):
    """A dense layer on the last axis; also in half precision, the gradients of its parameters are float32.

    Made by :func:`linear`, which gives the logical name of the last axis and the number of heads in it.
    """

    out_axis: str | None = None
    heads: int | None = None

    def __call__(self, inputs: Float[Array, "batch *shape inputs"], out_sharding: None = None) -> Float[Array, "..."]:
        """Applies the layer in its dtype."""
        kernel, bias = self.kernel[...], self.bias
        dtype = jnp.dtype(self.dtype or jnp.promote_types(inputs.dtype, kernel.dtype))
        if dtype == kernel.dtype or bias is None:
            return split_batch(super().__call__(inputs, out_sharding), self.out_axis, self.heads)
        y = matmul(inputs.astype(dtype).reshape(-1, inputs.shape[-1]), kernel)
        y = (y + spread(bias[...], y)).reshape(*inputs.shape[:-1], -1)
        return split_batch(y, self.out_axis, self.heads)


def linear(
    inputs: int,
    outputs: int,
    *,
    axes: Axes = ("embed", None),
    std: float | None = None,
    heads: int | None = None,
    dtype: DTypeLike | None = None,
    rngs: nnx.Rngs,
) -> Dense:
    """A dense layer with bias, float32 parameters and logical axes; ``std`` replaces the LeCun initialisation.

    What computes in float32, such as the ends of a head, does so on every device: accelerators round the operands of
    float32 products to TF32 or bfloat16 unless they are told not to. A layer whose outputs are split over devices
    (``mlp``, ``heads``) is followed by one that sums over them.
    """
    exact = dtype is None or jnp.dtype(dtype) == jnp.float32
    init = nnx.initializers.lecun_normal() if std is None else nnx.initializers.normal(std)
    layer = Dense(
        inputs,
        outputs,
        kernel_init=annotate(init, *axes, heads=heads),
        bias_init=annotate(nnx.initializers.zeros_init(), *axes[1:], heads=heads),
        dtype=dtype,
        precision=jax.lax.Precision.HIGHEST if exact else None,
        rngs=rngs,
    )
    layer.out_axis, layer.heads = axes[-1], heads
    return layer


def layer_norm(width: int, *, affine: bool = True, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm over the last axis, statistics and parameters in float32.

    The parameters have an axis name, of nothing, so that a stack of layers is known for one: vectors do not decay.
    """
    return nnx.LayerNorm(
        width,
        use_bias=affine,
        use_scale=affine,
        scale_init=annotate(nnx.initializers.ones_init(), None),
        bias_init=annotate(nnx.initializers.zeros_init(), None),
        dtype=jnp.float32,
        rngs=rngs,
    )


def embedding_table(key: jax.Array, shape: tuple[int, ...], std: float = 0.02) -> nnx.Param:
    """A learned embedding table ``[..., width]``."""
    return nnx.Param(std * jax.random.normal(key, shape), out_sharding=(None,) * len(shape), eager_sharding=False)


class Attention(nnx.Module):
    """Multi-head attention from queries to a source that may be the queries themselves."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        target: int | None = None,
        source: int | None = None,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        """Builds the layer; ``target`` and ``source`` are the widths of the two sides if they differ from ``width``."""
        self.heads = heads
        make = functools.partial(linear, heads=heads, dtype=dtype, rngs=rngs)
        self.query = make(target or width, width, axes=("embed", "heads"))
        self.key_value = make(source or width, 2 * width, axes=("embed", "heads"))
        self.out = make(width, target or width, axes=("heads", "embed"))

    def keys_values(self, source: Float[Array, "batch source width"]) -> KeyValue:
        """Keys and values of the source, so that a sampler can compute them once."""
        batch, length, _ = source.shape
        keys, values = jnp.split(self.key_value(source).reshape(batch, length, self.heads, -1), 2, axis=-1)
        return keys, values

    def __call__(
        self,
        x: Float[Array, "batch length target"],
        keys_values: KeyValue,
        mask: Bool[Array, "batch source"] | None = None,
    ) -> Float[Array, "batch length target"]:
        """Attends to every source position that ``mask`` allows; softmax in float32."""
        batch, length, _ = x.shape
        query = self.query(x).reshape(batch, length, self.heads, -1)
        context = attention(query, *keys_values, mask=mask)
        return self.out(context.reshape(batch, length, -1))


class Mlp(nnx.Module):
    """Two dense layers with GELU between them."""

    def __init__(
        self,
        inputs: int,
        hidden: int,
        outputs: int,
        *,
        std: float | None = None,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        self.up = linear(inputs, hidden, axes=("embed", "mlp"), dtype=dtype, rngs=rngs)
        self.down = linear(hidden, outputs, axes=("mlp", "embed"), std=std, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "*shape inputs"]) -> Float[Array, "*shape outputs"]:
        """Maps the last axis."""
        return self.down(nnx.gelu(self.up(x)))
