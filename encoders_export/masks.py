"""Space-time block masks for masked latent prediction (V-JEPA, Bardes et al. 2024, arXiv:2404.08471).

A mask is drawn per clip as a union of blocks; then both sides are cut to fixed counts by random choice, so that
a batch is rectangular. Token ids count time, row, column.
"""

import dataclasses

import numpy as np
from jaxtyping import Int


@dataclasses.dataclass(frozen=True)
class MaskSpec:
    """One kind of mask.

    ``blocks`` square blocks of ``size`` tokens that span all time steps; with probability ``future`` the blocks
    are replaced by the whole last time step, so that the past must predict the present. ``visible`` and
    ``hidden`` are the numbers of tokens that the context encoder sees and the predictor must predict.
    """

    blocks: int
    size: int
    visible: int
    hidden: int
    future: float = 0.0


SHORT = MaskSpec(blocks=4, size=3, visible=48, hidden=40, future=0.25)
"""Many small holes; sometimes the future. Sized for 2 x 8 x 8 tokens."""
LONG = MaskSpec(blocks=2, size=6, visible=24, hidden=56)
"""Two large holes that leave a rim."""


def draw_masks(
    spec: MaskSpec, rng: np.random.Generator, batch: int, grid: tuple[int, int, int]
) -> tuple[Int[np.ndarray, "batch visible"], Int[np.ndarray, "batch hidden"]]:
    """Ids of visible and of hidden tokens per clip, disjoint.

    Args:
        spec: kind of mask.
        rng: source of randomness.
        batch: clips.
        grid: time steps, rows, columns.

    """
    time, rows, columns = grid
    masked = np.zeros((batch, time, rows, columns), bool)
    for _ in range(spec.blocks):
        # Blocks may hang over the edge; otherwise a large one would hide the centre in every mask.
        top = rng.integers(-(spec.size // 2), rows - (spec.size + 1) // 2 + 1, batch)[:, None]
        left = rng.integers(-(spec.size // 2), columns - (spec.size + 1) // 2 + 1, batch)[:, None]
        in_rows = (np.arange(rows) >= top) & (np.arange(rows) < top + spec.size)
        in_columns = (np.arange(columns) >= left) & (np.arange(columns) < left + spec.size)
        masked |= (in_rows[:, :, None] & in_columns[:, None, :])[:, None]
    future = rng.random(batch) < spec.future
    masked[future] = np.arange(time)[:, None, None] == time - 1
    # A random order in which masked tokens come first: hidden from its front, visible from its back.
    order = np.argsort(rng.random((batch, masked[0].size)) - masked.reshape(batch, -1), axis=1)
    return order[:, -spec.visible :], order[:, : spec.hidden]
