"""The power computation of eval/plan.md: its test errs as often as it says, and finds what theory says it finds."""

import numpy as np
import pytest

from benchmarks.power import ALPHA, detectable, simulate, thresholds


def test_looking_early_costs_no_more_errors_than_allowed():
    looks = (4, 6, 8)
    levels = thresholds(looks)
    assert (np.diff(levels) > 0).all() and levels[-1] < ALPHA
    assert simulate(0.0, 7.0, looks, levels, seed=2).power == pytest.approx(ALPHA, abs=0.006)
    assert simulate(0.0, 7.0, looks, np.full(3, ALPHA), seed=2).power > 1.3 * ALPHA


def test_one_look_has_the_power_of_the_t_test():
    """8 pairs with a difference of 1.16 deviations: power 0.80 (noncentral t with 7 degrees of freedom)."""
    from scipy.stats import nct
    from scipy.stats import t as student

    critical, effect = student.ppf(1 - ALPHA / 2, 7), 1.16 * np.sqrt(8)
    exact = nct.sf(critical, 7, effect) + nct.cdf(-critical, 7, effect)
    assert simulate(1.16, 1.0, (8,), thresholds((8,))).power == pytest.approx(exact, abs=0.006)
    assert detectable(1.0, (8,))[0] == pytest.approx(1.16, abs=0.06)
