"""Two systems over training seeds."""

import numpy as np
import pytest
from scipy.stats import permutation_test, ttest_1samp

from tests.rollout.test_comparison import write
from wmjax import compare as command
from wmjax.analysis.seeds import compare_seeds, sign_flip, student_interval
from wmjax.core.errors import UserError

VALUES = np.array([0.1, 0.3, -0.05, 0.2, 0.15])


def test_the_interval_and_the_test_are_scipys():
    expected = ttest_1samp(VALUES, 0).confidence_interval()
    assert student_interval(VALUES) == pytest.approx((expected.low, expected.high))
    exact = permutation_test((VALUES,), np.sum, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip(VALUES) == pytest.approx(exact.pvalue)
    assert sign_flip(np.ones(3)) == 2 / 8


def system(tmp_path, name, solved):
    """One evaluation of ten episodes per seed, of which the first ``solved[seed]`` succeed."""
    folders = []
    for seed, count in solved.items():
        outcomes = {(0, i): "success" if i < count else "failure" for i in range(10)}
        folders.append(write(tmp_path / f"{name}{seed}", outcomes, experiment={"seed": seed, "recipe": name}))
    return folders


def test_seeds_are_paired_whatever_their_order(tmp_path, capsys):
    a, b = system(tmp_path, "a", {0: 4, 1: 6, 2: 5}), system(tmp_path, "b", {2: 8, 0: 6, 1: 7})
    result = compare_seeds(a, b)
    assert result.seeds == (0, 1, 2)
    assert [pair.difference for pair in result.pairs] == pytest.approx([0.2, 0.1, 0.3])
    assert result.difference == pytest.approx(0.2) and result.p_value == pytest.approx(0.25)
    assert command.main(["--a", *map(str, a), "--b", *map(str, b)]) == 0
    out = capsys.readouterr().out
    assert "over 3 training seeds: +20.0 points (95 % -4.8 to +44.8), exact sign-flip p = 0.25" in out
    assert "3 seeds can reach p = 0.25 at best; 0.05 needs six or more" in out
    assert result.hierarchical[0] < 0.1 < 0.3 < result.hierarchical[1], "wider than the range of the seeds' means"


def test_a_side_is_one_system_and_what_differs_between_the_sides_is_said(tmp_path, capsys):
    def evaluation(name, recipe, seed, count, **changed):
        training = {"suite": "libero_spatial", "changed": changed}
        outcomes = {(0, i): "success" for i in range(count)}
        return write(tmp_path / name, outcomes, experiment={"seed": seed, "recipe": recipe}, training=training)

    a = [evaluation(f"a{seed}", "a", seed, 10) for seed in (0, 1)]
    b = [evaluation(f"b{seed}", "b", seed, 9, steps=9) for seed in (0, 1)]
    with pytest.raises(UserError, match=r"training\.changed\.steps is None in .*c0, 9 in .*b1; .* one side"):
        compare_seeds(a, [evaluation("c0", "b", 0, 9), b[1]])
    assert command.main(["--a", *map(str, a), "--b", *map(str, b)]) == 0
    shown = capsys.readouterr().out
    assert "experiment.recipe: 'a' in A, 'b' in B" in shown and "training.changed.steps: None in A, 9 in B" in shown
    assert "2 unpaired episodes left out" in shown
    older = [*system(tmp_path, "b", {2: 9}), b[1]]  # says nothing of its training: nothing is known to differ
    assert compare_seeds([evaluation("a2", "a", 2, 10), a[1]], older).seeds == (1, 2)


def test_seeds_that_do_not_match_are_refused(tmp_path, capsys):
    a, b = system(tmp_path, "a", {0: 4, 1: 6}), system(tmp_path, "b", {0: 8, 2: 6})
    with pytest.raises(UserError, match=r"A has the training seeds \[0, 1\], B \[0, 2\]"):
        compare_seeds(a, b)
    with pytest.raises(UserError, match="both have training seed 0"):
        compare_seeds([a[0], a[0]], b)
    with pytest.raises(UserError, match="no training seed"):
        compare_seeds([write(tmp_path / "noop", {(0, 0): "failure"})], b)
    assert command.main([str(a[0])]) == 2
    assert "give two results folders" in capsys.readouterr().err
