"""The sequential paired test: its capital, its error rates in simulated comparisons, and its command."""

import math

import numpy as np
import pytest
from scipy.stats import fisher_exact, ttest_1samp

from benchmarks.sequential_test import simulate
from tests.rollout.test_comparison import write
from wmjax import compare as command
from wmjax.analysis.paired_tests import boschloo, mcnemar_exact, newcombe
from wmjax.analysis.seeds import two_one_sided_tests
from wmjax.analysis.sequential import StoppingRule, log_capital, look, sizes
from wmjax.core.errors import UserError

RULE = StoppingRule()


def test_the_capital_is_the_product_of_the_bets():
    pairs = np.array([0, 1, -1, 0, 1])
    # Discordant before each pair, with the prior's 3 of 10: 3/10, 3/11, 4/12, 5/13, 5/14.
    bets = [0.15 / share for share in (3 / 10, 3 / 11, 4 / 12, 5 / 13, 5 / 14)]
    expected = np.cumprod([1, 1 + bets[1], 1 - bets[2], 1, 1 + bets[4]])
    np.testing.assert_allclose(np.exp(log_capital(pairs, 0.15)), expected)
    other = np.cumprod([1, 1 - bets[1], 1 + bets[2], 1, 1 - bets[4]])
    found = look([pairs], RULE)
    assert found.e_value == pytest.approx(((expected + other) / 2).max())
    assert (found.pairs, found.discordant, found.verdict) == (5, 3, "undecided")
    assert found.difference == pytest.approx(0.2) and found.p_value == pytest.approx(1 / found.e_value)


def test_bets_do_not_depend_on_what_they_bet_on():
    pairs = np.array([1, 0, -1, 1, 1, 0, -1])
    for end in range(1, len(pairs)):
        changed = np.concatenate([pairs[:end], -pairs[end:]])
        np.testing.assert_array_equal(log_capital(changed, 0.15)[:end], log_capital(pairs, 0.15)[:end])
    steps = [np.diff(np.exp(log_capital(np.r_[pairs[:3], x], 0.15)))[-1] for x in (1, -1)]
    assert sum(steps) == pytest.approx(0.0), "a fair bet"


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_no_difference_is_claimed_in_at_most_five_percent_however_often_one_looks(share):
    found = simulate(share, 0.0, comparisons=2000, limit=300, rule=RULE)
    assert found["claimed"] <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 2000)
    assert found["claimed"] + found["smaller"] > 0.95


def test_it_needs_fewer_pairs_than_a_test_of_fixed_size():
    """At least 25 % fewer at the planned effect and power, at least half as many where the difference is 25 points."""
    fixed, wald = sizes(RULE, 0.3)
    planned = simulate(0.3, 0.15, comparisons=1000, limit=600, rule=RULE)
    large = simulate(0.3, 0.25, comparisons=1000, limit=600, rule=RULE)
    assert planned["claimed"] >= 0.78 and planned["pairs"] <= 0.75 * fixed + 2 and wald < planned["pairs"]
    assert large["claimed"] >= 0.97 and large["pairs"] <= 0.5 * fixed


def test_seeds_are_combined_by_the_product_of_their_capitals():
    a, b = np.array([1, 1, 0, 1, 1, 1]), np.array([1, 0, 1, 1, -1, 1])
    forward = sum(log_capital(pairs, 0.15)[-1] for pairs in (a, b))
    backward = sum(log_capital(-pairs, 0.15)[-1] for pairs in (a, b))
    assert look([a, b], RULE).e_value == pytest.approx((math.exp(forward) + math.exp(backward)) / 2)


def test_verdicts():
    assert look([np.ones(20, int)], RULE).verdict == "B is better"
    assert look([-np.ones(20, int)], RULE).verdict == "A is better"
    assert look([np.tile([1, -1], 60)], RULE).verdict == "smaller than the effect"
    assert look([np.zeros(400, int)], RULE).verdict == "undecided", "pairs alike in all say nothing of a difference"
    assert "anytime-valid p =" in look([np.ones(20, int)], RULE).line()


def test_bad_rules_and_pairs_are_refused():
    with pytest.raises(UserError, match=r"effect is 0; it must be above 0 and below 1"):
        StoppingRule(effect=0.0)
    for pairs in ([], [np.array([2])]):
        with pytest.raises(UserError, match="each of them -1, 0 or 1"):
            look(pairs, RULE)


def test_unpaired_tests_agree_with_published_values():
    # Newcombe (1998), Statistics in Medicine 17, table II: 56/70 - 48/80 = 0.2, method 10 gives 0.0524 to 0.3339.
    assert newcombe(48, 80, 56, 70) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    # Boschloo's test is uniformly more powerful than Fisher's, whose p-value bounds its own.
    assert boschloo(3, 10, 9, 10) == pytest.approx(boschloo(9, 10, 3, 10))
    assert boschloo(3, 10, 9, 10) <= fisher_exact([[3, 9], [7, 1]]).pvalue and boschloo(0, 10, 10, 10) < 1e-4


def test_mcnemar_is_the_sign_test():
    for only_a, only_b in ((0, 0), (1, 6), (7, 7), (3, 30)):
        n, low = only_a + only_b, min(only_a, only_b)
        tail = sum(math.comb(n, k) for k in range(low + 1)) / 2**n
        assert mcnemar_exact(only_a, only_b) == pytest.approx(min(1.0, 2 * tail))


def test_small_differences_over_seeds_are_equivalent():
    values = np.array([0.01, -0.02, 0.015, 0.0, -0.01, 0.02])
    below = ttest_1samp(values, 0.05, alternative="less").pvalue
    above = ttest_1samp(values, -0.05, alternative="greater").pvalue
    assert two_one_sided_tests(values, 0.05) == pytest.approx(max(below, above))
    assert two_one_sided_tests(values + 0.1, 0.05) > 0.9
    assert two_one_sided_tests(np.zeros(3), 0.05) == 0.0 and math.isnan(two_one_sided_tests(np.zeros(1), 0.05))


def test_evaluations_of_different_episodes_are_compared_on_request(tmp_path, capsys):
    a = write(tmp_path / "a", {(0, i): "success" if i < 3 else "failure" for i in range(10)}, recipe="e1")
    b = write(tmp_path / "b", {(0, i): "success" if i < 29 else "failure" for i in range(20, 30)}, recipe="e2")
    assert command.main([str(a), str(b)]) == 2 and "--unpaired" in capsys.readouterr().err
    assert command.main([str(a), str(b), "--unpaired"]) == 0
    out = capsys.readouterr().out
    assert "A: 3 of 10, B: 9 of 10" in out and "B - A: +60.0 points" in out and "exact Boschloo p = 0.0" in out
    other = write(tmp_path / "c", {(1, 0): "success"})
    assert command.main([str(a), str(other), "--unpaired"]) == 2 and "the same tasks" in capsys.readouterr().err


def test_flags_that_do_not_belong_together_are_refused(tmp_path, capsys):
    assert command.main([str(tmp_path), "--until", "decided"]) == 2
    assert "give two folders" in capsys.readouterr().err
    assert command.main([str(tmp_path), str(tmp_path), "--protocol.seed", "3"]) == 2
    assert "--protocol.seed" in capsys.readouterr().err
