"""Finds training frames by their latents, for the strips that show the Prophet's predictions."""

import numpy as np
from jaxtyping import Float32, Int, UInt8

from wmjax.analysis.neighbours import nearest
from wmjax.core.location import Rows

FRAMES, BYTES = 2000, 64_000_000
"""Limits of an album: the number of frames and the bytes of their latents. At ``mini`` 2,000 frames are 25 MB."""


class Album:
    """Some frames of a training store with their latents in the space in which the Prophet predicts.

    Args:
        pictures: the frames of the store, u8 ``[store, cameras, height, width, 3]``.
        frames: indices of the album's frames among them.
        camera: index of the camera that the latents are of.
        latents: of these frames.

    """

    def __init__(
        self,
        pictures: Rows,
        frames: Int[np.ndarray, " n"],
        camera: int,
        latents: Float32[np.ndarray, "n tokens dim"],
    ) -> None:
        self._pictures, self._frames, self._camera, self._latents = pictures, frames, camera, latents

    def look_up(self, latents: Float32[np.ndarray, "k tokens dim"]) -> UInt8[np.ndarray, "k height width 3"]:
        """The picture whose latent is nearest to each of these."""
        found = nearest(latents, self._latents)[:, 0]
        return np.stack([np.asarray(self._pictures[self._frames[row], self._camera]) for row in found])


def spread(count: int, values: int) -> Int[np.ndarray, " n"]:
    """Indices of evenly spaced frames among ``count``, as many as an album of latents of so many values may hold."""
    most = max(1, min(count, FRAMES, BYTES // (4 * values)))
    return np.unique(np.linspace(0, count - 1, most).round().astype(int))
