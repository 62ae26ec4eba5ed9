"""Integer image shifts with edge clamping: the augmentation of pixels, and the views of latents.

The same function works on numpy and jax arrays and uses index arithmetic only, so a latent view that was encoded
offline in numpy and the pixels that are shifted inside a jitted step agree bit for bit. Imports neither.
"""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Int32, UInt8

from wmjax.core.errors import UserError

MAX_SHIFT = 1
"""Largest shift of the default views, pixels.

In LIBERO the objects of a task move by about 1 cm: a pixel of the scene camera, a few of the wrist camera at 112
pixels. Wider shifts hide just that: with 6 pixels policies learned to ignore their images (docs/experiments.md).
"""

VIEWS = 2
"""Views of an episode by default, the first unshifted."""

Array = Any
"""A numpy or jax array; this module must not import jax."""


@dataclasses.dataclass(frozen=True)
class ViewTable:
    """The image shifts of a store of latents, without the latents: models that read none train on the same pixels.

    Attributes:
        views: int32 ``[episodes, views, 2]``, (dy, dx) of each view in pixels; view 0 is unshifted.
        cameras: names of the cameras that are shifted as the view is.

    """

    views: Int32[np.ndarray, "episodes views 2"]
    cameras: tuple[str, ...]


def shift_images(
    images: UInt8[Array, "*batch height width channels"], dy: Array | int, dx: Array | int
) -> UInt8[Array, "*batch height width channels"]:
    """Moves image content by ``dy`` pixels down and ``dx`` to the right, repeating the edge.

    Args:
        images: numpy or jax array of any dtype.
        dy: int, or integers over the leading axes of ``images`` (an image clip ``[b, t, h, w, 3]`` with one
            shift per clip takes ``dy[b]``).
        dx: like ``dy``.

    """
    xp = images.__array_namespace__()
    rows = _clamped(xp, images, dy, images.shape[-3])
    columns = _clamped(xp, images, dx, images.shape[-2])
    shifted = xp.take_along_axis(images, rows[..., :, None, None], axis=-3)
    return xp.take_along_axis(shifted, columns[..., None, :, None], axis=-2)


def _clamped(xp: Any, images: Array, offset: Array | int, size: int) -> Array:
    """Source indices ``[*batch, size]`` (batch axes of length 1 where the offset does not vary)."""
    offset = xp.asarray(offset, dtype=xp.int32)
    offset = offset.reshape(offset.shape + (1,) * (images.ndim - 3 - offset.ndim))
    return xp.clip(xp.arange(size, dtype=xp.int32) - offset[..., None], 0, size - 1)


def require_shift(max_shift: int, size: int, name: str) -> None:
    """Refuses shifts of a whole image of ``size`` pixels, of which only repetitions of its edge would be left.

    Raises:
        UserError: names the setting ``name``.

    """
    if max_shift >= size:
        raise UserError(f"{name} is {max_shift}, but the images have {size} pixels; lower it")


def draw_views(episodes: int, views: int, seed: int, max_shift: int = MAX_SHIFT) -> Int32[np.ndarray, "e v 2"]:
    """Shifts (dy, dx) of the views of every episode; view 0 is unshifted, one shift holds for a whole episode."""
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, views, max_shift])))
    shifts = generator.integers(-max_shift, max_shift + 1, (episodes, views, 2), dtype=np.int32)
    shifts[:, 0] = 0
    return shifts
