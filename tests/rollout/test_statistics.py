"""Intervals and paired tests against published values and scipy."""

import numpy as np
import pytest
from scipy.stats import binomtest

from wmjax.analysis.intervals import wilson
from wmjax.analysis.paired_tests import holm, mcnemar_exact, paired_counts, required_pairs


@pytest.mark.parametrize("trials", [1, 20, 50, 500])
def test_wilson_is_scipys(trials):
    for successes in {0, 1, trials // 3, trials - 1, trials}:
        expected = binomtest(successes, trials).proportion_ci(method="wilson")
        assert wilson(successes, trials) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_knows_the_predecessors_zero_of_twenty():
    low, high = wilson(0, 20)
    assert low == 0.0 and high == pytest.approx(0.161, abs=5e-4)
    assert wilson(20, 20)[1] == 1.0
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (5, 0), (3, 11), (11, 3), (7, 7), (600, 700)])
def test_mcnemar_is_the_exact_sign_test(only_a, only_b):
    total = only_a + only_b
    expected = binomtest(only_a, total).pvalue if total else 1.0
    assert mcnemar_exact(only_a, only_b) == pytest.approx(expected, rel=1e-9)


def test_pairs_are_counted_over_common_episodes():
    a = {"1": True, "2": True, "3": False, "4": False, "5": True}
    b = {"1": True, "2": False, "3": True, "4": False, "6": True}
    assert paired_counts(a, b) == (1, 1, 1, 1)


def test_the_required_sample_gives_the_power_it_promises():
    only_a, only_b = 0.05, 0.15
    needed = required_pairs(only_a, only_b)
    draws = np.random.default_rng(0).multinomial(needed, [only_a, only_b, 1 - only_a - only_b], 2000)
    power = np.mean([mcnemar_exact(int(a), int(b)) < 0.05 for a, b, _ in draws])
    assert 0.7 < power < 0.85  # the exact test is a little conservative
    assert required_pairs(0.1, 0.1) is None


def test_holm_multiplies_by_what_is_left_and_never_reverses_the_order():
    assert holm([0.03, 0.01, 0.04, 0.5]) == pytest.approx((0.09, 0.04, 0.09, 0.5))
    assert holm([0.9, 0.8]) == (1.0, 1.0) and holm([]) == ()
