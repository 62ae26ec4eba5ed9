"""Exact tests between evaluations, of the same episodes or of different ones."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import NormalDist

from scipy.stats import binomtest, boschloo_exact

from wmjax.analysis.intervals import Z_95, wilson


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """Two-sided exact McNemar p-value: the sign test on the episodes in which only one run succeeded.

    Args:
        only_a: episodes that only the first run solved.
        only_b: episodes that only the second run solved.

    """
    discordant = only_a + only_b
    return float(binomtest(only_a, discordant).pvalue) if discordant else 1.0


def boschloo(successes_a: int, trials_a: int, successes_b: int, trials_b: int) -> float:
    """Two-sided p-value of Boschloo's exact unconditional test of two success rates on different episodes (1970).

    Args:
        successes_a: episodes that the first run solved, of ``trials_a`` (at least 1).
        trials_a: see ``successes_a``.
        successes_b: the same for the second run.
        trials_b: see ``successes_b``.

    """
    table = [[successes_a, successes_b], [trials_a - successes_a, trials_b - successes_b]]
    return float(boschloo_exact(table).pvalue)


def newcombe(successes_a: int, trials_a: int, successes_b: int, trials_b: int) -> tuple[float, float]:
    """95 % interval of the rate of B minus that of A on different episodes (Newcombe 1998, method 10).

    Args:
        successes_a: episodes that the first run solved, of ``trials_a`` (at least 1).
        trials_a: see ``successes_a``.
        successes_b: the same for the second run.
        trials_b: see ``successes_b``.

    """
    rate_a, rate_b = successes_a / trials_a, successes_b / trials_b
    (low_a, high_a), (low_b, high_b) = wilson(successes_a, trials_a), wilson(successes_b, trials_b)
    difference = rate_b - rate_a
    low = difference - math.hypot(rate_b - low_b, high_a - rate_a)
    return low, difference + math.hypot(high_b - rate_b, rate_a - low_a)


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """P values corrected for their number by Holm's step-down method (Holm 1979), in the order given."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return tuple(adjusted)


def paired_counts(a: Mapping[str, bool], b: Mapping[str, bool]) -> tuple[int, int, int, int]:
    """Counts over the episodes that both runs finished: both solved, only ``a``, only ``b``, neither."""
    counts = Counter((a[key], b[key]) for key in a if key in b)
    return counts[True, True], counts[True, False], counts[False, True], counts[False, False]


def required_pairs(only_a: float, only_b: float, power: float = 0.8) -> int | None:
    """Episodes that two runs must share for McNemar's test to find this difference (Connor 1987, Biometrics 43).

    Args:
        only_a: share of episodes that only the first run solves, in [0, 1].
        only_b: share that only the second run solves.
        power: wanted probability of p < 0.05, two-sided.

    Returns:
        The number of paired episodes; None if the shares are equal, which no sample tells apart.

    """
    discordant, difference = only_a + only_b, abs(only_a - only_b)
    if difference == 0.0:
        return None
    z_power = NormalDist().inv_cdf(power)
    root = Z_95 * math.sqrt(discordant) + z_power * math.sqrt(discordant - difference**2)
    return math.ceil((root / difference) ** 2)
