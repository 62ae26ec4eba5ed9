"""Results are read back, counted and shown."""

import dataclasses
import json
from pathlib import Path

import pytest

from tests.rollout.fakes import PROTOCOL
from wmjax.analysis.summary import summarize
from wmjax.core.errors import UserError
from wmjax.rollout.benchmark_log import count_records, write_record
from wmjax.rollout.protocol import Protocol
from wmjax.rollout.results import EpisodeRecord, Results, differences, read_header, read_records


def record(task: int, index: int, outcome: str, steps: int = 10) -> EpisodeRecord:
    return EpisodeRecord(
        key=f"libero_spatial/{task}/random/{index}", suite="libero_spatial", task_id=task, instruction=f"task {task}",
        init="random", index=index, seed=1, settled_hash="h", success=outcome == "success", steps=steps,
        outcome=outcome, attempts=1, faults=(), seconds=1.0, decisions=2, info={"gate": 0.5}, recipe_hash="",
        open_loop_horizon=8, execution_delay=0,
    )  # fmt: skip


def test_records_survive_the_disk(tmp_path):
    results = Results(tmp_path, {"actor": "noop"})
    written = [record(0, 0, "success"), record(0, 1, "crash")]
    for item in written:
        results.add(item)
    assert read_records(tmp_path) == written
    assert Results(tmp_path, {"actor": "noop"}).finished == {item.key for item in written}


def test_a_header_with_more_fields_of_the_same_recipe_is_resumed(tmp_path):
    Results(tmp_path, {"recipe_hash": "h"}).add(record(0, 0, "success"))
    more = {"recipe_hash": "h", "training": {"changed": {"train.steps": 9}}}
    assert len(Results(tmp_path, more).finished) == 1
    with pytest.raises(UserError, match="recipe_hash"):
        Results(tmp_path, more | {"recipe_hash": "other"})


def test_a_header_from_before_a_field_was_there_has_its_default():
    """Whatever field is next: evaluations that exist can be resumed and compared."""
    protocol = json.loads(json.dumps(dataclasses.asdict(PROTOCOL)))
    for field in dataclasses.fields(Protocol):
        if field.default is dataclasses.MISSING:
            continue
        new = {"actor": "policy", "protocol": protocol | {field.name: field.default}}
        old = {"actor": "policy", "protocol": {k: v for k, v in new["protocol"].items() if k != field.name}}
        assert differences(old, new) == differences(new, old) == {}
        changed = {"actor": "policy", "protocol": protocol | {field.name: "another"}}
        assert list(differences(old, changed)) == [f"protocol.{field.name}"]


def test_evaluations_with_different_corruptions_never_mix(tmp_path):
    """A header from before corruptions is resumed as the same evaluation, but not as a corrupted one."""

    def header(**corruption):
        return {"actor": "policy", "protocol": {"seed": 0, **corruption}}

    Results(tmp_path, header()).add(record(0, 0, "success"))
    assert len(Results(tmp_path, header(corruption="none")).records) == 1
    with pytest.raises(UserError, match=r"holds an evaluation with protocol.corruption = 'none', this one has 'zero'"):
        Results(tmp_path, header(corruption="zero"))


def test_a_torn_last_line_is_dropped_and_a_damaged_one_refused(tmp_path):
    results = Results(tmp_path, {})
    results.add(record(0, 0, "success"))
    with results.path.open("a") as file:
        file.write('{"key": "libero')
    assert len(Results(tmp_path, {}).records) == 1
    with results.path.open("a") as file:
        file.write('{"key": 3}\n')
    with pytest.raises(UserError, match=r"episodes.jsonl:2: damaged line"):
        Results(tmp_path, {})


def test_an_episode_twice_is_refused(tmp_path):
    line = json.dumps(dataclasses.asdict(record(0, 0, "success"))) + "\n"
    (tmp_path / "episodes.jsonl").write_text(line * 2)
    with pytest.raises(UserError, match="occurs twice"):
        read_records(tmp_path)


def test_a_folder_without_evaluation_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"header.json is missing"):
        read_header(tmp_path)


def test_crashes_and_timeouts_are_counted_apart_from_failures():
    outcomes = ["success", "success", "failure", "crash", "timeout", "timeout"]
    records = [record(3, i, outcome, 10 * (i + 1)) for i, outcome in enumerate(outcomes)] + [record(1, 0, "failure")]
    summary = summarize(records)
    assert [task.task for task in summary.tasks] == ["libero_spatial/1", "libero_spatial/3"]
    task = summary.tasks[1]
    assert (task.successes, task.failures, task.timeouts, task.crashes) == (2, 1, 2, 1)
    assert task.rate == pytest.approx(2 / 3) and task.mean_steps == 20
    assert (summary.overall.successes, summary.overall.finished) == (2, 4)


def test_the_table_is_aligned_and_tells_everything():
    lines = summarize([record(0, 0, "success"), record(1, 0, "failure"), record(1, 1, "timeout")]).table().splitlines()
    assert [line.split() for line in lines[2:]] == [
        ["libero_spatial/0", "1/1", "100.0", "%", "20.7-100.0", "%", "10", "0", "0", "task", "0"],
        ["libero_spatial/1", "0/1", "0.0", "%", "0.0-79.3", "%", "10", "1", "0", "task", "1"],
        ["all", "1/2", "50.0", "%", "9.5-90.5", "%", "10", "1", "0"],
    ]
    assert len({line.index("%", 40) for line in lines[2:]}) == 1


def test_an_empty_evaluation_has_a_table():
    summary = summarize([])
    assert summary.overall.finished == 0 and "successes" in summary.table()


def finished_run(recipe: str = "r", at: str = "2026-01-01", command: str = "python") -> dict:
    header = {"recipe_hash": recipe, "protocol": {"name": "libero_spatial"}}
    return {"command": command, "finished_at": at, "header": header}


def test_a_record_of_a_benchmark_names_no_folder_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("WMJAX_CACHE", str(tmp_path / "cache"))
    command = f"python -m wmjax.evaluate --run {tmp_path}/cache/runs/e2 --out other"
    content = finished_run(command=command)
    content["header"]["training"] = {"changed": {"data.path": f"{tmp_path}/cache/demos/a"}}
    path = write_record(tmp_path, "libero_spatial", content)
    kept = json.loads(path.read_text())
    assert kept["command"] == "python -m wmjax.evaluate --run $WMJAX_CACHE/runs/e2 --out other"
    assert kept["header"]["training"] == {"changed": {"data.path": "$WMJAX_CACHE/demos/a"}}
    assert write_record(tmp_path, "libero_spatial", content) == path  # killed after its record it has no second one


def test_records_are_numbered_beyond_the_last_and_a_run_has_one(tmp_path, caplog):
    (tmp_path / "libero_spatial-001.json").write_text(json.dumps(finished_run("old")))
    first = write_record(tmp_path, "libero_spatial", finished_run())
    assert first.name == "libero_spatial-002.json" == write_record(tmp_path, "libero_spatial", finished_run()).name
    assert "report all of these runs" not in caplog.text
    again = write_record(tmp_path, "libero_spatial", finished_run(at="2026-01-02"))
    assert again.name == "libero_spatial-003.json" and "report all of these runs" in caplog.text
    assert count_records(tmp_path, finished_run()["header"]) == 2
    assert count_records(tmp_path / "nowhere", finished_run()["header"]) == 0


def test_two_runs_that_end_at_the_same_moment_both_leave_a_record(tmp_path, monkeypatch):
    real = Path.glob
    monkeypatch.setattr(Path, "glob", lambda path, pattern: iter([]))  # neither sees the other's
    names = [write_record(tmp_path, "libero_spatial", finished_run(recipe)).name for recipe in ("a", "b")]
    monkeypatch.setattr(Path, "glob", real)
    assert names == ["libero_spatial-000.json", "libero_spatial-001.json"]
