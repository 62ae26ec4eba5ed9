"""What goes into the policy network, and what it asks of a vision-language model."""

from typing import Protocol

import jax
from jaxtyping import Array, Bool, Float, Float32, Int32, UInt8

from wmjax.models.world.memory import Inject


class Backbone(Protocol):
    """What the VLA asks of a vision-language model; keys are for dropout in its adapters."""

    def embed(
        self,
        tokens: Int32[Array, "batch length"],
        images: UInt8[Array, "batch cameras height width 3"] | None = None,
        key: jax.Array | None = None,
    ) -> Float[Array, "batch length hidden"]:
        """Token embeddings with image features in place, if there are images."""
        ...

    def decode(
        self,
        embeddings: Float[Array, "batch length hidden"],
        positions: Int32[Array, "batch 3 length"],
        mask: Bool[Array, "batch length"],
        key: jax.Array | None = None,
    ) -> Float[Array, "batch length hidden"]:
        """Hidden states after the final norm."""
        ...

    def decode_injected(
        self,
        embeddings: Float[Array, "batch length hidden"],
        positions: Int32[Array, "batch 3 length"],
        mask: Bool[Array, "batch length"],
        key: jax.Array | None,
        layers: tuple[int, ...],
        inject: Inject,
    ) -> tuple[Float[Array, "batch length hidden"], Float32[Array, "batch"]]:
        """The same with something done after some layers, and the mean of the numbers that this reports."""
        ...
