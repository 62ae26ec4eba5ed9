"""Paired comparison of two evaluations."""

import dataclasses

import numpy as np
import pytest

from tests.rollout.test_results import record
from wmjax import compare as command
from wmjax.analysis.comparison import compare, stratified_bootstrap
from wmjax.core.errors import UserError
from wmjax.rollout.results import Results


def write(folder, outcomes: dict[tuple[int, int], str], **header):
    results = Results(folder, {"actor": "policy", "protocol": {"name": "dev"}, **header})
    for (task, index), outcome in outcomes.items():
        results.add(record(task, index, outcome))
    return folder


def runs(tmp_path):
    """Task 0: A solves 1 alone, B solves 6 alone; task 1: both solve all; one crash and one surplus episode."""
    a = {(0, i): "success" if i < 1 else "failure" for i in range(8)} | {(1, i): "success" for i in range(3)}
    b = {(0, i): "success" if 1 <= i < 7 else "failure" for i in range(8)} | {(1, i): "success" for i in range(4)}
    b[1, 2] = "crash"
    return write(tmp_path / "a", a, recipe="e1"), write(tmp_path / "b", b, recipe="e2")


def test_pairs_difference_and_p_value(tmp_path):
    result = compare(*runs(tmp_path))
    assert [(r.name, r.both, r.only_a, r.only_b, r.neither) for r in result.rows] == [
        ("libero_spatial/0", 0, 1, 6, 1),
        ("libero_spatial/1", 2, 0, 0, 0),
        ("all", 2, 1, 6, 1),
    ]
    assert result.unpaired == 2
    assert result.difference == pytest.approx(0.5)
    assert result.p_value == pytest.approx(2 * 8 / 128)  # (C(7,0) + C(7,1)) / 2^7, two-sided
    assert result.interval[0] < 0.5 < result.interval[1]
    assert result.changes == {"recipe": ("e1", "e2")}


def test_the_report_is_printed(tmp_path, capsys):
    a, b = runs(tmp_path)
    assert command.main([str(a), str(b)]) == 0
    out = capsys.readouterr().out
    assert "recipe: 'e1' in A, 'e2' in B" in out
    assert "B - A: +50.0 points" in out and "p = 0.125; 2 unpaired" in out


def test_several_runs_are_each_compared_with_the_first(tmp_path, capsys):
    a, b = runs(tmp_path)
    outcomes = {(0, i): "success" if i < 1 else "failure" for i in range(8)}
    same = write(tmp_path / "c", outcomes, corruption="closed", experiment={"recipe": "e2", "seed": 3})
    assert command.main([str(a), str(b), str(same)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "e2 s3 (c): corruption is 'closed', None in policy (a)" in lines
    table = [line.split(")", 1)[1].split() for line in lines if ")  " in line]
    assert [row[0] for row in table] == ["4/11", "8/10", "1/8"]
    assert table[1][-4:] == ["1", "6", "0.125", "0.250"]
    assert table[2][-4:] == ["0", "0", "1.000", "1.000"]


def test_different_starts_and_nothing_in_common_are_refused(tmp_path, capsys):
    a = write(tmp_path / "a", {(0, 0): "success"})
    b = write(tmp_path / "b", {(0, 1): "success"})
    with pytest.raises(UserError, match="no finished episodes in common"):
        compare(a, b)
    results = Results(b, {"actor": "policy", "protocol": {"name": "dev"}})
    results.add(dataclasses.replace(record(0, 0, "success"), settled_hash="other"))
    with pytest.raises(UserError, match=r"their states have 0 and 0 values; use one simulator for both"):
        compare(a, b)
    assert command.main([str(tmp_path), str(b)]) == 2
    assert "header.json is missing" in capsys.readouterr().err


def start(folder, hash_: str, state: tuple[float, ...]):
    """An evaluation of one episode that started from this state."""
    results = Results(folder, {"actor": "policy", "protocol": {"name": "dev"}})
    results.add(dataclasses.replace(record(0, 0, "success"), settled_hash=hash_, settled_state=state))
    return folder


STATE = (0.0, 0.4999999995, -1.2345678901234567, 3.5)


@pytest.mark.parametrize("shift", [0.0, 4e-12, -4e-12, 9e-10])
def test_machines_whose_kernels_round_differently_are_compared(tmp_path, shift):
    """Also where rounding before hashing would split the pair."""
    a, b = start(tmp_path / "a", "a", STATE), start(tmp_path / "b", "b", tuple(x + shift for x in STATE))
    assert compare(a, b).rows[-1].pairs == 1


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ((0.0, 0.5, -1.2345678901234567, 3.6), r"states differ by 0\.1, at most 1e-09 .* use one simulator"),
        (tuple(x + 2e-9 for x in STATE), r"states differ by 2e-09, at most 1e-09"),
        (STATE[:3], r"states have 4 and 3 values; use one simulator"),
    ],
)
def test_other_starts_are_refused_with_the_distance(tmp_path, state, message):
    a, b = start(tmp_path / "a", "a", STATE), start(tmp_path / "b", "b", state)
    with pytest.raises(UserError, match=message):
        compare(a, b)


def test_the_bootstrap_agrees_with_the_normal_interval_and_keeps_tasks_apart():
    values = np.random.default_rng(1).integers(-1, 2, 400)
    low, high = stratified_bootstrap([values])
    spread = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - spread, values.mean() + spread), abs=0.01)
    assert stratified_bootstrap([np.ones(5, int), -np.ones(5, int)]) == (0.0, 0.0)
