"""The published V-JEPA 2 frame preprocessing, without torchvision."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, UInt8

from wmjax.core.errors import UserError
from wmjax.encoders.vjepa2.config import IMAGENET_MEAN, IMAGENET_STD, VJEPA2Config


def preprocess(
    frames: UInt8[Array, "*batch height width 3"], config: VJEPA2Config
) -> Float32[Array, "*batch crop crop 3"]:
    """Resizes the shortest edge (bilinear, antialiased, rounded to 8 bits), crops the centre, normalises.

    The formula of ``transformers.VJEPA2VideoProcessor``: shortest edge to ``config.resize``, centre crop of
    ``config.image_size``, ``/255``, ImageNet mean and standard deviation. Frames whose shortest edge already
    is ``config.resize`` are not resampled.

    Raises:
        UserError: frames that are not RGB.

    """
    *batch, height, width, channels = frames.shape
    if channels != config.channels:
        raise UserError(f"frames have {channels} channels, the encoder needs {config.channels}; pass RGB frames")
    short = min(height, width)
    pixels = frames.astype(jnp.float32)
    if short != config.resize:
        shape = (*batch, config.resize * height // short, config.resize * width // short, channels)
        pixels = jax.image.resize(pixels, shape, "linear", antialias=True)
        pixels = jnp.clip(jnp.round(pixels), 0, 255)
        height, width = shape[-3:-1]
    top, left = (height - config.image_size) // 2, (width - config.image_size) // 2
    pixels = pixels[..., top : top + config.image_size, left : left + config.image_size, :]
    return (pixels / 255.0 - jnp.array(IMAGENET_MEAN)) / jnp.array(IMAGENET_STD)
