"""Exact paired tests between evaluations of the same episodes."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import NormalDist

from wmjax.analysis.intervals import Z_95


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """Two-sided exact McNemar p-value: the sign test on the episodes in which only one run succeeded.

    Args:
        only_a: episodes that only the first run solved.
        only_b: episodes that only the second run solved.

    """
    discordant = only_a + only_b
    tail = sum(math.comb(discordant, k) for k in range(min(only_a, only_b) + 1))
    return min(1.0, 2 * tail / 2**discordant)


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
