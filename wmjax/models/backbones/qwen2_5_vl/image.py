"""Images as patch vectors, inside jit: resizing, normalisation and cutting, as the reference image processor does them.

The module also defines the order of tokens in the vision tower. A *group* is the square of patches that becomes one
merged token. Groups are ordered window by window, with windows of equal shape together, so that window attention is a
reshape.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped, UInt8

from wmjax.core.errors import UserError

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""Statistics of the CLIP training images (Radford et al. 2021), which Qwen2.5-VL normalises with."""
MIN_PIXELS, MAX_PIXELS = 56 * 56, 28 * 28 * 1280


def smart_resize(
    height: int, width: int, factor: int = 28, min_pixels: int = MIN_PIXELS, max_pixels: int = MAX_PIXELS
) -> tuple[int, int]:
    """The size that the reference resizes an image to: multiples of ``factor``, area in bounds, aspect ratio kept.

    Rounds half to even, as the reference does.

    Raises:
        UserError: an empty image, or an aspect ratio above 200.

    """
    if min(height, width) < 1 or max(height, width) > 200 * min(height, width):
        raise UserError(f"image size is {height} x {width}; use sides of at least 1 and an aspect ratio of at most 200")
    rows, columns = round(height / factor) * factor, round(width / factor) * factor
    if rows * columns > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        rows = max(factor, math.floor(height / shrink / factor) * factor)
        columns = max(factor, math.floor(width / shrink / factor) * factor)
    elif rows * columns < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        rows, columns = math.ceil(height * grow / factor) * factor, math.ceil(width * grow / factor) * factor
    return rows, columns


def resize(images: UInt8[Array, "*batch height width channels"], size: tuple[int, int]) -> UInt8[Array, "..."]:
    """Bicubic resizing with antialiasing to ``size`` (height, width), as the reference's Pillow does.

    One axis after the other, with rounding to uint8 after either: at sharp edges the overshoot of the first pass is cut
    off, which a single two-dimensional pass would keep (up to 30 levels of difference).
    """
    *batch, height, width, channels = images.shape
    # Pillow 13 chooses the order so (found by trying 1,477 pairs of sizes); older versions always start with columns.
    rows_first = height - size[0] > max(0, 2 * (width - size[1]))
    for sides in ((size[0], width) if rows_first else (height, size[1]), size):
        if images.shape[-3:-1] != sides:
            shape = (*batch, *sides, channels)
            resized = jax.image.resize(images.astype(jnp.float32), shape, method="cubic", antialias=True)
            images = jnp.clip(jnp.floor(resized + 0.5), 0, 255).astype(jnp.uint8)
    return images


def patchify(
    images: UInt8[Array, "images height width channels"], patch: int, merge: int
) -> Float[Array, "images groups patches pixels"]:
    """Normalised patches, groups in raster order; a patch vector is ordered (channel, row, column).

    The reference repeats a still image ``temporal_patch`` times along a time axis after the channel.

    Raises:
        UserError: a side that is not a multiple of ``patch * merge``.

    """
    count, height, width, channels = images.shape
    factor = patch * merge
    if height % factor or width % factor or not height or not width:
        raise UserError(
            f"image size is {height} x {width}, sides must be positive multiples of {factor}; resize it to "
            f"{' x '.join(map(str, smart_resize(max(height, 1), max(width, 1), factor)))}"
        )
    cut = images.reshape(count, height // factor, merge, patch, width // factor, merge, patch, channels)
    cut = cut.transpose(0, 1, 4, 2, 5, 7, 3, 6)
    cut = cut.reshape(count, (height // factor) * (width // factor), merge**2, channels, patch**2)
    std, mean = (np.array(v, np.float32)[:, None] for v in (STD, MEAN))
    normalised = cut.astype(jnp.float32) * (1 / (255 * std)) - mean / std
    return normalised.reshape(*cut.shape[:3], channels * patch**2)


class Region(NamedTuple):
    """A rectangle of groups that is tiled by windows of one shape."""

    top: int
    left: int
    rows: int
    columns: int
    window_rows: int
    window_columns: int

    @property
    def windows(self) -> int:
        """Number of windows."""
        return (self.rows // self.window_rows) * (self.columns // self.window_columns)

    @property
    def window_size(self) -> int:
        """Groups per window."""
        return self.window_rows * self.window_columns


def regions(rows: int, columns: int, window: int) -> list[Region]:
    """Cuts a grid of groups into at most four regions: whole windows, right edge, bottom edge, corner."""
    whole_rows, whole_columns = rows // window * window, columns // window * window
    bands = [(0, whole_rows, window), (whole_rows, rows - whole_rows, rows - whole_rows)]
    stripes = [(0, whole_columns, window), (whole_columns, columns - whole_columns, columns - whole_columns)]
    return [
        Region(top, left, height, width, window_rows, window_columns)
        for top, height, window_rows in bands
        for left, width, window_columns in stripes
        if height and width
    ]


def to_windows(
    x: Shaped[Array | np.ndarray, "images groups *rest"], grid: tuple[int, int], window: int
) -> Shaped[Array | np.ndarray, "images groups *rest"]:
    """Reorders groups from raster order to window after window. Works on numpy and jax arrays."""
    rest = x.shape[2:]
    plane = x.reshape(x.shape[0], *grid, -1)
    parts = []
    for r in regions(*grid, window):
        part = plane[:, r.top : r.top + r.rows, r.left : r.left + r.columns]
        part = part.reshape(
            x.shape[0], r.rows // r.window_rows, r.window_rows, r.columns // r.window_columns, r.window_columns, -1
        )
        parts.append(part.transpose(0, 1, 3, 2, 4, 5).reshape(x.shape[0], r.rows * r.columns, *rest))
    concatenate = np.concatenate if isinstance(x, np.ndarray) else jnp.concatenate
    return concatenate(parts, axis=1) if len(parts) > 1 else parts[0]


def from_windows(x: Shaped[Array, "images groups width"], grid: tuple[int, int], window: int) -> Shaped[Array, "..."]:
    """Undoes :func:`to_windows`."""
    bands: dict[int, list[Array]] = {}
    start = 0
    for r in regions(*grid, window):
        part = x[:, start : start + r.rows * r.columns]
        part = part.reshape(
            x.shape[0], r.rows // r.window_rows, r.columns // r.window_columns, r.window_rows, r.window_columns, -1
        )
        part = part.transpose(0, 1, 3, 2, 4, 5).reshape(x.shape[0], r.rows, r.columns, -1)
        bands.setdefault(r.top, []).append(part)
        start += r.rows * r.columns
    rows = [jnp.concatenate(band, axis=2) for band in bands.values()]
    return jnp.concatenate(rows, axis=1).reshape(x.shape)
