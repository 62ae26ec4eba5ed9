"""Intervals of success rates."""

import math
from collections.abc import Sequence

Z_95 = 1.959963984540054
"""The standard normal's 97.5 % quantile."""


def wilson(successes: int, trials: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson's score interval of a success probability (Wilson 1927), which is also valid at 0 and at n of n.

    Args:
        successes: 0..trials.
        trials: may be 0, for which the interval is [0, 1].
        z: normal quantile; the default gives 95 %.

    """
    if trials == 0:
        return 0.0, 1.0
    rate = successes / trials
    centre = rate + z * z / (2 * trials)
    spread = z * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    low = 0.0 if successes == 0 else (centre - spread) / scale  # exact at the ends, where rounding is not
    high = 1.0 if successes == trials else (centre + spread) / scale
    return low, high


def mean_rate(counts: Sequence[tuple[int, int]]) -> tuple[float, tuple[float, float]]:
    """The mean of several success rates, each of the same weight, with its 95 % interval.

    The interval adds the distances of the rates from their Wilson limits in squares (MOVER: Zou and Donner 2008,
    "Construction of confidence limits about effect measures: a general approach"). It covers the choice of episodes.

    Args:
        counts: successes and trials of each rate; at least one, none with 0 trials.

    """
    rates = [successes / trials for successes, trials in counts]
    limits = [wilson(*count) for count in counts]
    mean = sum(rates) / len(rates)
    below = math.hypot(*(rate - low for rate, (low, _) in zip(rates, limits, strict=True))) / len(rates)
    above = math.hypot(*(high - rate for rate, (_, high) in zip(rates, limits, strict=True))) / len(rates)
    return mean, (max(0.0, mean - below), min(1.0, mean + above))
