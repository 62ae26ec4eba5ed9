"""Augmentation by colours: brightness, contrast and saturation of every training image, changed at random.

The definitions are those of torchvision's ``ColorJitter`` (``torchvision.transforms.v2.functional``), which LeRobot
uses, in that order.
"""

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, UInt8

from wmjax.core.settings import Range, Settings

LUMA = (0.2989, 0.587, 0.114)
"""Weights of red, green and blue in a grey value, as torchvision rounds those of ITU-R BT.601."""


@dataclasses.dataclass(frozen=True)
class ColourConfig(Settings, section="colours"):
    """The strength of the colour changes of training images; 0 means no change.

    Each image of each camera gets factors of its own, drawn uniformly from 1 - x to 1 + x. 0.3, 0.4 and 0.5 are usual.
    Latents are of the unchanged images.
    """

    brightness: Annotated[float, Range(0, 1)] = 0.0
    contrast: Annotated[float, Range(0, 1)] = 0.0
    saturation: Annotated[float, Range(0, 1)] = 0.0

    @property
    def changes(self) -> bool:
        """Whether anything is changed."""
        return bool(self.brightness or self.contrast or self.saturation)


def jitter_colours(
    images: UInt8[Array, "batch cameras height width 3"], key: Array, config: ColourConfig
) -> UInt8[Array, "batch cameras height width 3"]:
    """The images with brightness, then contrast, then saturation changed by factors drawn from the key."""
    most = jnp.array([config.brightness, config.contrast, config.saturation], jnp.float32)
    factors = 1.0 + most * jax.random.uniform(key, (*images.shape[:2], 3), jnp.float32, -1.0, 1.0)
    return change_colours(images, factors)


def change_colours(
    images: UInt8[Array, "*batch height width 3"], factors: Float32[Array, "*batch 3"]
) -> UInt8[Array, "*batch height width 3"]:
    """The images with brightness, contrast and saturation multiplied by one factor each."""
    brightness, contrast, saturation = jnp.moveaxis(factors[..., None, None, None, :], -1, 0)
    values = _bounded(images.astype(jnp.float32) * brightness)
    values = _blend(values, jnp.mean(_grey(values), axis=(-3, -2, -1), keepdims=True), contrast)
    values = _blend(values, _grey(values), saturation)
    return jnp.round(values).astype(jnp.uint8)


def _blend(
    values: Float32[Array, "*batch height width 3"],
    other: Float32[Array, "..."],
    factor: Float32[Array, "*batch 1 1 1"],
) -> Float32[Array, "*batch height width 3"]:
    return _bounded(factor * values + (1.0 - factor) * other)


def _bounded(values: Float32[Array, "*batch height width 3"]) -> Float32[Array, "*batch height width 3"]:
    return jnp.clip(values, 0.0, 255.0)


def _grey(values: Float32[Array, "*batch height width 3"]) -> Float32[Array, "*batch height width 1"]:
    return jnp.sum(values * jnp.array(LUMA, jnp.float32), axis=-1, keepdims=True)
