"""The linear layer of all models, with a low-rank adapter that a config switches on per projection.

LoRA (Hu et al. 2021, arXiv:2106.09685): ``y = x W + b + s (dropout(x) A) B`` with ``s = alpha / rank``, or
``alpha / sqrt(rank)`` with rank stabilisation (Kalajdzievski 2023, arXiv:2312.03732). ``B`` starts at zero.
"""

import dataclasses
import functools
import zlib
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Key

from wmjax.core.errors import unknown_name
from wmjax.core.settings import Range, Rate, Settings
from wmjax.models.nn.layout import split_batch
from wmjax.models.nn.precision import matmul, spread
from wmjax.models.nn.stack import LINEAR_OUTPUT, annotate

TEXT_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
VISION_PROJECTIONS = ("qkv", "proj", "gate_proj", "up_proj", "down_proj")


EVERY = slice(None)
"""All outputs of a layer."""


class AddedParam(nnx.Param):
    """A parameter added to a pretrained model and trained although its base is frozen, as LoRA parameters are."""


ADAPTER = (nnx.LoRAParam, AddedParam)
"""The NNX filter for what stays trainable, in float32, when the base model is frozen."""


@dataclasses.dataclass(frozen=True)
class LoRAConfig(Settings, section="lora"):
    """The projections that get an adapter; rank 0 means none.

    ``layers`` restricts the text decoder's adapters to some of its layers; empty means all.
    """

    rank: Annotated[int, Range(0, 100_000)] = 0
    alpha: Annotated[float, Range(0, 1_000_000, above=True)] = 16.0
    dropout: Rate = 0.0
    rank_stabilised: bool = False
    targets: tuple[str, ...] = TEXT_PROJECTIONS
    vision_targets: tuple[str, ...] = ()
    layers: tuple[Annotated[int, Range(0, 1_000)], ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        for field, known in (("targets", TEXT_PROJECTIONS), ("vision_targets", VISION_PROJECTIONS)):
            for name in getattr(self, field):
                if name not in known:
                    raise unknown_name(f"projection in lora.{field}", name, known)

    @property
    def scale(self) -> float:
        """The factor of the low-rank term."""
        if not self.rank:
            return 0.0
        return self.alpha / (self.rank**0.5 if self.rank_stabilised else self.rank)


class AdapterInputs(NamedTuple):
    """The inputs of a layer's adapters: a dropout key (None: no dropout) and 0 or 1 for inactive or active."""

    key: Key[Array, ""] | None = None
    active: Float[Array, ""] | None = None


class Linear(nnx.Module):
    """``y = x kernel + bias``, plus the adapter if its config has a rank and names this projection."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        axes: tuple[str | None, str | None],
        *,
        rngs: nnx.Rngs,
        bias: bool = False,
        name: str = "",
        lora: LoRAConfig | None = None,
        adapted: tuple[str, ...] = (),
        dtype: str = "float32",
        param_dtype: str = "float32",
        gain: float = 1.0,
        heads: int | None = None,
    ) -> None:
        """Creates the parameters.

        Args:
            inputs: width of the input.
            outputs: width of the output.
            axes: logical axis names of the kernel.
            rngs: source of the initial values.
            bias: whether to add a bias.
            name: the projection's name, as in ``adapted``.
            lora: the adapters' config.
            adapted: projections that get an adapter.
            dtype: dtype of the computation.
            param_dtype: dtype of kernel and bias; adapters are always float32.
            gain: the kernel's initial standard deviation times ``sqrt(inputs)``.
            heads: the number of heads in the axis that is named for them, if one is.

        """
        init = nnx.initializers.variance_scaling(gain**2, "fan_in", "truncated_normal")
        annotated = functools.partial(annotate, heads=heads)
        kernel = annotated(init, *axes)(rngs.params(), (inputs, outputs), jnp.dtype(param_dtype))
        self.kernel = nnx.Param(kernel)
        zeros = nnx.initializers.zeros_init()
        self.bias = (
            nnx.Param(annotated(zeros, axes[1])(rngs.params(), (outputs,), jnp.dtype(param_dtype))) if bias else None
        )
        self.name, self.dtype, self.out_axis, self.heads = name, dtype, axes[1], heads
        rank = lora.rank if lora is not None and name in adapted else 0
        self.scale, self.dropout = (lora.scale, lora.dropout) if lora is not None else (0.0, 0.0)
        uniform = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        a, b = annotated(uniform, axes[0], None), annotated(zeros, None, axes[1])
        self.lora_a = nnx.LoRAParam(a(rngs.params(), (inputs, rank), jnp.float32)) if rank else None
        self.lora_b = nnx.LoRAParam(b(rngs.params(), (rank, outputs), jnp.float32)) if rank else None

    def __call__(
        self, x: Float[Array, "... inputs"], adapter: AdapterInputs | None = None, columns: slice = EVERY
    ) -> Float[Array, "... out"]:
        """Applies the layer in ``dtype``; the gradients of float32 parameters are summed in float32.

        Leading axes are flattened: contracting several axes for the kernel's gradient makes XLA on CPU transpose.

        Args:
            x: the input.
            adapter: inputs of the adapter.
            columns: the outputs that are computed.

        """
        flat = x.astype(self.dtype).reshape(-1, x.shape[-1])
        y = matmul(flat, self.kernel[...][:, columns])
        if self.bias is not None:
            y = y + spread(self.bias[...][columns], y)
        if self.lora_a is not None:
            y = y + self._low_rank(flat, adapter or AdapterInputs(), columns)
        y = checkpoint_name(y, LINEAR_OUTPUT).reshape(*x.shape[:-1], -1)
        return split_batch(y, self.out_axis, self.heads)

    def _low_rank(
        self, x: Float[Array, "... inputs"], adapter: AdapterInputs, columns: slice
    ) -> Float[Array, "... out"]:
        assert self.lora_a is not None and self.lora_b is not None
        if adapter.key is not None and self.dropout:
            key = jax.random.fold_in(adapter.key, zlib.crc32(self.name.encode()))
            mask = jax.random.bernoulli(key, 1 - self.dropout, x.shape)
            x = jnp.where(mask, x / (1 - self.dropout), 0).astype(x.dtype)
        scale = self.scale if adapter.active is None else self.scale * adapter.active.astype(self.dtype)
        # Scaled where it is narrow: after the second product, both passes would go through a matrix as wide as y.
        return matmul(matmul(x, self.lora_a[...]) * scale, self.lora_b[...][:, columns])
