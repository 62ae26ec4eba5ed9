"""Statistics in LeRobot's format: per feature min, max, mean, std, count and five quantiles.

They are exact. The library approximates quantiles by histograms and images by a sample of downscaled frames; here all
values of the columns are kept, and images are counted per channel and level.
"""

from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
LEVELS = np.arange(256) / 255.0

Stats = dict[str, Any]


def column_stats(values: np.ndarray) -> Stats:
    """Statistics of a column ``[n]`` or ``[n, dim]``, as lists; integer columns keep integer min and max."""
    values = values.reshape(len(values), -1)
    exact = values.astype(np.float64)
    stats: Stats = {
        "min": values.min(axis=0).tolist(),
        "max": values.max(axis=0).tolist(),
        "mean": exact.mean(axis=0).tolist(),
        "std": exact.std(axis=0).tolist(),
        "count": [len(values)],
    }
    return stats | {name: np.quantile(exact, q, axis=0).tolist() for name, q in QUANTILES.items()}


def count_levels(images: UInt8[np.ndarray, "n height width 3"]) -> Int64[np.ndarray, "3 256"]:
    """Counts of each value in each channel; counts of several episodes add up."""
    return np.stack([np.bincount(images[..., c].ravel(), minlength=256) for c in range(3)])


def image_stats(levels: Int64[np.ndarray, "3 256"], frames: int) -> Stats:
    """Statistics of images in [0, 1] per channel, each ``[3, 1, 1]``, from counted levels; count is in frames."""
    total = levels.sum(axis=1)
    mean = levels @ LEVELS / total
    variance = np.maximum(levels @ LEVELS**2 / total - mean**2, 0.0)
    present = [LEVELS[row > 0] for row in levels]
    cumulative = levels.cumsum(axis=1) / total[:, None]
    stats = {
        "min": np.array([values[0] for values in present]),
        "max": np.array([values[-1] for values in present]),
        "mean": mean,
        "std": np.sqrt(variance),
        **{name: LEVELS[(cumulative < q).sum(axis=1)] for name, q in QUANTILES.items()},
    }
    nested: Stats = {name: value.reshape(3, 1, 1).tolist() for name, value in stats.items()}
    order = ("min", "max", "mean", "std", "count", *QUANTILES)
    return {name: nested.get(name, [frames]) for name in order}
