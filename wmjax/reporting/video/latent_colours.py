"""Latents as colours: the three directions of largest variance become red, green and blue."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float32, UInt8

from wmjax.data.latents import LatentStore
from wmjax.data.statistics import normalise_latents
from wmjax.data.store import TrainingStore

LATENTS, CHANGES = "latents z", "z - place mean"
"""Names of the two pictures of latents: z, and z less the mean over all frames at the same place of the grid."""
PERCENTILES = (2.0, 98.0)
"""The percentiles drawn as 0 and as 255; values beyond them are clipped."""

Colours = UInt8[np.ndarray, "frames rows columns 3"]


@dataclasses.dataclass(frozen=True)
class LatentColours:
    """Principal components (Pearson 1901) of a set of latents, mapped to RGB.

    Attributes:
        mean: of the latents.
        basis: unit vectors of the first three components, each with its largest entry positive.
        low, high: percentiles of the three projections, shown as 0 and 255.
        explained: share of the variance that each component carries.

    """

    mean: Float32[np.ndarray, " dim"]
    basis: Float32[np.ndarray, "dim 3"]
    low: Float32[np.ndarray, "3"]
    high: Float32[np.ndarray, "3"]
    explained: tuple[float, ...]

    @classmethod
    def fit(cls, latents: Float[np.ndarray, "*batch dim"]) -> "LatentColours":
        """The components of all tokens together, of any frame and position. Fewer than 3 channels leave 0."""
        tokens = latents.reshape(-1, latents.shape[-1]).astype(np.float32)
        mean = tokens.mean(0)
        centred = tokens - mean
        values, vectors = np.linalg.eigh((centred.T @ centred).astype(np.float64) / len(centred))
        top = np.arange(len(values))[::-1][:3]
        basis = np.zeros((len(mean), 3), np.float32)
        basis[:, : len(top)] = vectors[:, top]
        basis *= np.where(basis[np.abs(basis).argmax(0), np.arange(3)] < 0, -1, 1).astype(np.float32)
        low, high = np.percentile(centred @ basis, PERCENTILES, axis=0).astype(np.float32)
        total = max(float(values.sum()), np.finfo(np.float64).tiny)
        return cls(mean, basis, low, high, tuple(float(max(values[i], 0)) / total for i in top))

    def __call__(self, latents: Float[np.ndarray, "*batch dim"]) -> UInt8[np.ndarray, "*batch 3"]:
        """The colour of each latent; mid-grey along a component that does not vary."""
        shares = (latents.astype(np.float32) - self.mean) @ self.basis - self.low
        width = self.high - self.low
        shares = np.where(width > 0, shares / np.where(width > 0, width, 1), 0.5)
        return np.round(np.clip(shares, 0, 1) * 255).astype(np.uint8)


def on_grid(latents: Float[np.ndarray, "*batch tokens dim"]) -> Float[np.ndarray, "*batch rows columns dim"]:
    """Tokens at their place in the image; a pooled one is a grid of 1, two cameras' grids are stacked vertically."""
    tokens = latents.shape[-2]
    columns = max(n for n in range(1, math.isqrt(tokens) + 1) if tokens % n == 0)
    return latents.reshape(*latents.shape[:-2], tokens // columns, columns, latents.shape[-1])


@dataclasses.dataclass(frozen=True)
class Painted:
    """The latents of the episodes shown, as colours.

    Attributes:
        colours: by name, one array ``[frames, rows, columns, 3]`` per episode number.
        explained: by name, the share of the variance in red, green and blue.

    """

    colours: dict[str, dict[int, Colours]]
    explained: dict[str, tuple[float, ...]]

    def of(self, index: int) -> dict[str, Colours]:
        """The colours of one episode."""
        return {name: colours[index] for name, colours in self.colours.items()}


def paint(latents: LatentStore, store: TrainingStore, indices: Sequence[int]) -> Painted:
    """Colours of z itself, dominated by the position in the image, and of the difference from the position's mean.

    Args:
        latents: of the training store; the unshifted view is shown.
        store: says where the episodes' frames are.
        indices: the episodes; components, means and colour range are over all of them together.

    """
    tokens = {index: _tokens(latents, store, index) for index in indices}
    everything = np.concatenate(list(tokens.values()))
    place = everything.mean(0)
    colours, explained = {}, {}
    for name, origin in ((LATENTS, np.zeros_like(place)), (CHANGES, place)):
        colour = LatentColours.fit(everything - origin)
        colours[name] = {index: colour(z - origin) for index, z in tokens.items()}
        explained[name] = colour.explained
    return Painted(colours, explained)


def _tokens(latents: LatentStore, store: TrainingStore, index: int) -> np.ndarray:
    """An episode's latents, unshifted view, normalised as in training: ``[frames, rows, columns, dim]``."""
    entry = store.episodes[index]
    span = slice(entry["frame_start"], entry["frame_start"] + entry["num_frames"])
    return on_grid(normalise_latents(np.asarray(latents.latents[0, span]), latents.spec))
