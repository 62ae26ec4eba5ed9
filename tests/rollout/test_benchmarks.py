"""Small versions of the benchmarks run, and their claims about success bits hold. Nothing is timed."""

import json
import math
from pathlib import Path

import pytest

from benchmarks import closed_loop, policy_latency, vla_eval_libero
from tests.rollout.runs import save_run
from wmjax.sim.libero import OBSERVATION_SPEC


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "head"), [("e0", "regression"), pytest.param("e2", "flow", marks=pytest.mark.long)]
)
def test_latency_is_measured_for_every_batch_and_for_the_flow(variant, head, tmp_path, capsys):
    run, out = save_run(tmp_path / variant, variant, head), tmp_path / "latency.json"
    policy_latency.main([str(run), "--repeats", "1", "--out", str(out)])
    found = json.loads(out.read_text())[variant]
    flow = {"sampler 1 steps", "sampler 10 steps", "head step", "(t10 - t1) / head step"}
    assert set(found) == {"batch 1", "batch 2", "batch 8"} | (flow if head == "flow" else set())
    assert all(math.isfinite(value) for value in found.values()) and variant in capsys.readouterr().out


@pytest.mark.sim
@pytest.mark.long
def test_every_rung_runs(tmp_path):
    out = tmp_path / "ladder.json"
    run = save_run(tmp_path / "e2", "e2", "flow")
    closed_loop.main([str(run), "--episodes", "1", "--max-steps", "12", "--here", "--out", str(out)])
    rows = json.loads(out.read_text())["e2"]
    assert [row["rung"] for row in rows] == [rung.name for rung in closed_loop.RUNGS]
    assert all(row["steps"] == [12] and row["rate"] > 0 for row in rows)


@pytest.mark.sim
@pytest.mark.long
def test_recorded_episodes_succeed_at_the_same_step_on_every_rung(recorded, monkeypatch, tmp_path, capsys):
    small = OBSERVATION_SPEC  # pictures of another size change no physics, and cost a quarter
    rungs = [closed_loop.dataclasses.replace(rung, spec=small, due_only=True) for rung in closed_loop.RUNGS]
    monkeypatch.setattr(closed_loop, "RUNGS", tuple(rung for rung in rungs if not rung.plain))
    out = tmp_path / "ladder.json"
    run = save_run(tmp_path / "e0", "e0", "regression")
    closed_loop.main([str(run), "--replay", str(recorded.folder), "--episodes", "2", "--here", "--out", str(out)])
    for row in json.loads(out.read_text())["e0"]:
        assert row["successes"] == [True, True] and row["ends_equal"]
        assert row["steps"] == [entry["success_step"] for entry in recorded.episodes]
    assert "DIFFER" not in capsys.readouterr().out


def test_a_benchmark_needs_someone_who_acts(capsys):
    with pytest.raises(SystemExit):
        closed_loop.main([])
    assert "give a RUN, or --replay STORE" in capsys.readouterr().err


def test_a_rung_without_its_package_says_what_to_install(monkeypatch):
    rung, work = closed_loop.RUNGS[-1], closed_loop.Work(Path("mini"), None, ())
    assert closed_loop.left_out(rung, work) == ""
    monkeypatch.setattr(vla_eval_libero.importlib.util, "find_spec", lambda name: None)
    told = "package vla_eval is not installed; run pip install --no-deps vla-eval==0.8.0"
    assert closed_loop.left_out(rung, work) == told
    assert "recorded" in closed_loop.left_out(rung, closed_loop.Work(None, Path("store"), ()))


@pytest.mark.sim
@pytest.mark.long
def test_vla_evals_environment_is_ours_but_for_what_is_listed(tmp_path):
    out = tmp_path / "found.json"
    vla_eval_libero.main(["observations", "--task", "1", "--episodes", "1", "--out", str(out)])
    (found,) = json.loads(out.read_text()).values()
    equal = {"objects and arm", "with vla-eval's fixtures", "physics", "earlier"}
    for name, value in found.items():
        assert (value == 0) == any(word in name for word in equal), (name, value)


@pytest.mark.sim
@pytest.mark.long
def test_vla_evals_benchmark_gets_the_actions_of_the_policy_in_process(tmp_path):
    run, out = save_run(tmp_path / "e2", "e2", "flow"), tmp_path / "outcomes.json"
    vla_eval_libero.main(["outcomes", str(run), "--episodes", "2", "--max-steps", "13", "--out", str(out)])
    found = json.loads(out.read_text())
    assert found["same actions"] == 2 and found["theirs, served"]["steps"] == [13, 13]
