"""Augmentation by crops: a random square part of every training image, enlarged to the image's size.

openpi trains so, with 95 % of the side (``RandomCrop`` and ``Resize`` of augmax).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, UInt8


def crop_at_random(
    images: UInt8[Array, "batch cameras height width 3"], key: Array, share: float
) -> UInt8[Array, "batch cameras height width 3"]:
    """Each image's part with ``share`` of its height and width, at a position drawn from the key for each image."""
    places = jax.random.uniform(key, (*images.shape[:2], 2))
    cropped = jax.vmap(jax.vmap(lambda image, place: crop(image, place, share)))(images, places)
    return jnp.round(jnp.clip(cropped, 0.0, 255.0)).astype(jnp.uint8)


def crop(
    image: UInt8[Array, "height width 3"], place: Float32[Array, "2"], share: float
) -> Float32[Array, "height width 3"]:
    """One image's part, enlarged by bilinear interpolation with pixel centres at halves.

    Args:
        image: the image.
        place: from 0 (the part begins at the image's top or left) to 1 (it ends at the bottom or right).
        share: of the image's height and width, above 0.

    """
    size = jnp.array(image.shape[:2], jnp.float32)
    start = place * (1.0 - share) * size
    scale = jnp.full(2, 1.0 / share, jnp.float32)
    return jax.image.scale_and_translate(
        image.astype(jnp.float32), image.shape, (0, 1), scale, -start * scale, method="linear", antialias=False
    )
