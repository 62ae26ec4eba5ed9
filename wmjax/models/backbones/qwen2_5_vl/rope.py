"""Rotary position embedding: two-dimensional for image patches, multimodal (time, height, width) for text.

Positions of tokens are computed on the host, as integers; cosines and sines in float32.
"""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from wmjax.core.errors import UserError

Angles = tuple[Float[Array | np.ndarray, "*#batch tokens half"], Float[Array | np.ndarray, "*#batch tokens half"]]
"""Cosine and sine of half a head's rotations."""


def rotate(x: Float[Array, "*batch tokens heads dim"], angles: Angles) -> Float[Array, "*batch tokens heads dim"]:
    """Rotates the pairs (i, i + dim/2) of every head, in float32 (Su et al. 2021, arXiv:2104.09864)."""
    cosine, sine = (a[..., None, :] for a in angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
    return rotated.astype(x.dtype)


def text_angles(positions: Int[Array, "batch 3 tokens"], theta: float, sections: tuple[int, ...]) -> Angles:
    """Angles of the text decoder: each frequency belongs to time, height or width (Qwen2-VL, arXiv:2409.12191)."""
    half = sum(sections)
    frequencies = _frequencies(theta, half)
    axes = np.repeat(np.arange(3), sections)
    chosen = positions.astype(jnp.float32)[:, axes, :] * frequencies[:, None]
    angles = jnp.swapaxes(chosen, 1, 2)
    return jnp.cos(angles), jnp.sin(angles)


def patch_angles(
    rows: Int[np.ndarray, " tokens"], columns: Int[np.ndarray, " tokens"], head_dim: int
) -> tuple[Float[np.ndarray, "tokens half"], Float[np.ndarray, "tokens half"]]:
    """Angles of the vision tower: the first half of the frequencies by row, the second by column."""
    frequencies = _frequencies(10000.0, head_dim // 4)
    angles = np.concatenate(
        [rows[:, None].astype(np.float32) * frequencies, columns[:, None].astype(np.float32) * frequencies], axis=-1
    )
    return np.cos(angles), np.sin(angles)


def _frequencies(theta: float, half: int) -> Float[np.ndarray, " half"]:
    exponents = np.arange(half, dtype=np.float32) / np.float32(half)
    return (1.0 / np.float32(theta) ** exponents).astype(np.float32)


def positions_of(
    tokens: Int[np.ndarray, "batch tokens"],
    mask: Bool[np.ndarray, "batch tokens"],
    image_grids: list[tuple[int, int]],
    image_token: int,
) -> Int[np.ndarray, "batch 3 tokens"]:
    """Positions (time, height, width) of prompts with still images.

    Text counts on in all three axes; an image of ``h x w`` merged tokens occupies one time step, and the text
    after it continues at the largest position so far plus one. Padding has position 0.

    Args:
        tokens: token ids.
        mask: False at padding, on either side.
        image_grids: merged tokens (rows, columns) of all images, in order of their appearance in the batch.
        image_token: id of the image placeholder.

    Raises:
        UserError: the runs of image placeholders do not match the grids.

    """
    grids = iter(image_grids)
    positions = np.zeros((tokens.shape[0], 3, tokens.shape[1]), np.int32)
    for row in range(tokens.shape[0]):
        positions[row][:, mask[row]] = _row_positions(tokens[row][mask[row]] == image_token, grids)
    left = len(list(grids))
    if left:
        raise UserError(f"prompts have {left} images fewer than the {len(image_grids)} given; add image placeholders")
    return positions


def _row_positions(
    is_image: Bool[np.ndarray, " tokens"], grids: Iterator[tuple[int, int]]
) -> Int[np.ndarray, "3 tokens"]:
    """Positions of one prompt without padding."""
    edges = np.flatnonzero(np.diff(is_image)) + 1
    parts: list[np.ndarray] = []
    start = 0
    for run in np.split(is_image, edges):
        if run.size == 0:
            continue
        if not run[0]:
            parts.append(np.broadcast_to(np.arange(run.size) + start, (3, run.size)))
            start += run.size
            continue
        height, width = next(grids, (0, 0))
        if height * width != run.size:
            raise UserError(
                f"a prompt has {run.size} image placeholders in a row, the image there has {height} x {width} merged "
                f"tokens; one placeholder per merged token, images apart"
            )
        columns = np.tile(np.arange(width), height)
        parts.append(np.stack([np.zeros(run.size), np.repeat(np.arange(height), width), columns]) + start)
        start += max(height, width)
    return np.concatenate(parts, axis=1).astype(np.int32) if parts else np.zeros((3, 0), np.int32)
