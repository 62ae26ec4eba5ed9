"""Success rates with intervals, and exact paired tests between runs on the same episodes."""

import math

Z_95 = 1.959963984540054
"""The standard normal's 97.5 % quantile."""


def wilson(successes: int, trials: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson's score interval of a success probability (Wilson 1927), which stays honest at 0 and at n of n.

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
