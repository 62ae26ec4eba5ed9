"""An encoder in one file: the mean colours of the cells of the newest frame."""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float32, UInt8

from wmjax.core.errors import UserError
from wmjax.core.specs import EncoderSpec
from wmjax.encoders.base import Encoder, EncoderConfig


@dataclasses.dataclass(frozen=True)
class MeanColourConfig(EncoderConfig):
    """Frames are cut into ``cells`` x ``cells``, and each cell becomes a token of 3 channels."""

    clip_length: int = 1
    cells: int = 2


class MeanColour(Encoder):
    """Nothing is learned: there are no parameters and no weights whose hash would identify it."""

    Config: ClassVar[type[EncoderConfig]] = MeanColourConfig

    def __init__(self, config: MeanColourConfig) -> None:
        self.spec, self._cells, self.params = self.describe(config), config.cells, ()

    @classmethod
    def describe(cls, config: MeanColourConfig) -> EncoderSpec:
        """Its tokens follow from its settings."""
        if config.cells < 1:
            raise UserError(f"encoder.cells is {config.cells}; set it to at least 1")
        return EncoderSpec(
            kind=config.kind,
            name="mean colour",
            parameters={"cells": config.cells},
            clip_length=config.clip_length,
            cameras=config.cameras,
            tokens_per_frame=config.cells**2 * len(config.cameras),
            dim=3,
        )

    def apply(
        self, params: Any, clips: UInt8[Array, "batch time height width 3"]
    ) -> Float32[Array, "batch tokens dim"]:
        """The colours of the last frame, from 0 to 1."""
        batch, _, height, width, _ = clips.shape
        n = self._cells
        cells = clips[:, -1].reshape(batch, n, height // n, n, width // n, 3)
        return jnp.mean(cells / 255.0, axis=(2, 4), dtype=jnp.float32).reshape(batch, n * n, 3)
