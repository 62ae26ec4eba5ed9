"""A V-JEPA 2 encoder in Flax for the export of latents."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from wmjax.core.specs import EncoderSpec
from wmjax.data.latents import Backend
from wmjax.encoders.vjepa2.files import encoder_spec, resolve_folder


class JaxEncoder:
    """A V-JEPA 2 encoder in Flax as an :class:`wmjax.encoders.encode.Encoder`; jax is imported here."""

    backend: Backend = "jax"

    def __init__(self, model: str = "mini", grid: int = 4, clip_length: int = 4, camera: str = "agentview") -> None:
        """Loads ``mini``, a checkpoint folder or a hub id.

        Raises:
            UserError: unknown encoder, damaged weights, a grid that does not fit.

        """
        import jax
        from flax import nnx

        from wmjax.encoders.vjepa2.model import latents
        from wmjax.encoders.vjepa2.weights import load_encoder

        self.spec: EncoderSpec = encoder_spec(model, grid, clip_length, camera)
        graph, state = nnx.split(load_encoder(resolve_folder(model)))
        self._state = state
        self._call: Callable[..., Any] = jax.jit(lambda s, clips: latents(nnx.merge(graph, s), clips, grid))

    def __call__(
        self, clips: UInt8[np.ndarray, "batch time height width 3"]
    ) -> Float32[np.ndarray, "batch tokens dim"]:
        """z(t) of clips that end at t, float32 on the host."""
        return np.asarray(self._call(self._state, clips))
