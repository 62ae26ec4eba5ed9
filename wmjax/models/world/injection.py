"""Gated cross-attention, which injects the world memory into the action tokens.

``h + tanh(gate) * out(attention(norm(h), norm(memory)))``, after Flamingo (Alayrac et al., 2022). By default the gate
starts at zero, so training starts at the policy without memory; the output path does not, so that the gate has a
gradient.
"""

import dataclasses
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float32

from wmjax.core.errors import UserError
from wmjax.core.settings import Depth, Range, Settings, Width
from wmjax.models.nn.transformer import Attention, embedding_table, layer_norm


class Gate(nnx.Param):
    """The gate before its tanh; its own type, so that an optimizer can give it its own rate and no weight decay."""


@dataclasses.dataclass(frozen=True)
class InjectionConfig(Settings, section="injection"):
    """Shape of the gated cross-attention. ``gate_per_channel`` gives every hidden channel its own gate.

    ``gate_start`` is the gate's initial value before its tanh; at 0 training starts at the policy without memory.
    ``layers`` are the text decoder's layers after which the memory is injected, each with its own parameters;
    empty injects once, after the last layer and its norm.
    """

    width: Width = 192
    heads: Depth = 6
    gate_per_channel: bool = False
    gate_start: Annotated[float, Range(0, 10)] = 0.0
    layers: tuple[Annotated[int, Range(0, 1_000)], ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.heads:
            raise UserError(
                f"injection.width is {self.width}, not a multiple of injection.heads {self.heads}; change one"
            )
        if list(self.layers) != sorted(set(self.layers)):
            raise UserError(f"injection.layers is {list(self.layers)}; name each layer once, in ascending order")


class Injection(NamedTuple):
    """The tokens after injection, the mean |gate|, and ‖injected‖ / ‖hidden‖ of each sample."""

    tokens: Float32[Array, "batch chunk hidden"]
    gate: Float32[Array, ""]
    ratio: Float32[Array, " batch"]


class GatedCrossAttention(nnx.Module):
    """Action tokens attend to the world memory. The gate, the norms and the sum are float32."""

    def __init__(
        self,
        config: InjectionConfig,
        *,
        hidden_dim: int,
        latent_dim: int,
        frames: int,
        tokens: int,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        self.hidden_norm = layer_norm(hidden_dim, rngs=rngs)
        self.memory_norm = layer_norm(latent_dim, rngs=rngs)
        self.time = embedding_table(rngs.params(), (frames, latent_dim))
        self.space = embedding_table(rngs.params(), (tokens, latent_dim))
        self.attention = Attention(
            config.width, config.heads, target=hidden_dim, source=latent_dim, dtype=dtype, rngs=rngs
        )
        start = jnp.full((hidden_dim if config.gate_per_channel else 1,), config.gate_start, jnp.float32)
        self.gate = Gate(start, out_sharding=(None,), eager_sharding=False)

    def __call__(
        self,
        hidden: Float32[Array, "batch chunk hidden"],
        memory: Float32[Array, "batch frames tokens dim"],
        memory_mask: Bool[Array, " batch"] | None = None,
    ) -> Injection:
        """Injects the memory; where ``memory_mask`` is False the sample's memory is empty (nothing is added)."""
        context = self.read(hidden, memory)
        gate = jnp.tanh(self.gate[...].astype(jnp.float32))
        added = gate * context
        if memory_mask is not None:
            added = jnp.where(memory_mask[:, None, None], added, 0.0)
        ratio = _mean_norm(added) / jnp.maximum(_mean_norm(hidden), 1e-6)
        return Injection(hidden + added, jnp.mean(jnp.abs(gate)), ratio)

    def read(
        self, hidden: Float32[Array, "batch chunk hidden"], memory: Float32[Array, "batch frames tokens dim"]
    ) -> Float32[Array, "batch chunk hidden"]:
        """The output of the cross-attention, before the gate."""
        batch, frames, tokens, _ = memory.shape
        source = self.memory_norm(memory) + self.time[...][:, None] + self.space[...]
        keys_values = self.attention.keys_values(source.reshape(batch, frames * tokens, -1))
        return self.attention(self.hidden_norm(hidden), keys_values).astype(jnp.float32)


def _mean_norm(x: Float32[Array, "batch chunk hidden"]) -> Float32[Array, " batch"]:
    """Mean length of each sample's tokens; for metrics only, hence without a gradient."""
    return jnp.mean(jnp.linalg.norm(jax.lax.stop_gradient(x), axis=-1), axis=-1)
