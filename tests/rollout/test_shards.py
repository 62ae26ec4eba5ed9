"""An evaluation in parts, by processes that share nothing but a folder, ends in the table of one process."""

import itertools
import json
import sys

import pytest

import wmjax.evaluate as command
from tests.rollout.fake_policy import FakePolicy
from tests.rollout.fakes import ENV, PROTOCOL
from tests.rollout.test_runner import verdicts
from wmjax.core.errors import UserError
from wmjax.core.shards import own_shard
from wmjax.policy.policy_actor import PolicyActor
from wmjax.rollout.evaluation_shards import part
from wmjax.rollout.results import read_records

EPISODES = PROTOCOL.episodes()


def table(folder) -> list:
    return [json.loads((folder / "summary.json").read_text())[name] for name in ("overall", "tasks", "header")]


@pytest.fixture
def sharded(run):
    """``sharded(name, (i, n), **more)`` runs one part of the policy's evaluation in the folder ``name``."""

    def _sharded(name, shard, **more):
        return run(PolicyActor(FakePolicy(2, 2), seed=3), name, shard=shard, **more)

    return _sharded


def test_parts_are_neighbours_and_together_everything():
    for count in (1, 2, 5, 12, 13):
        parts = [part(EPISODES, (index, count)) for index in range(count)]
        assert list(itertools.chain(*parts)) == EPISODES
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_shards_in_any_order_end_in_the_table_of_one_process(sharded, tmp_path):
    expected = sharded("whole", (0, 1))
    assert {record.success for record in expected.values()} == {True, False}
    assert sharded("parts", (2, 3)) == {} == sharded("parts", (0, 3))
    assert not (tmp_path / "parts" / "summary.json").exists()
    records = sharded("parts", (1, 3))
    assert verdicts(records) == verdicts(expected)
    assert list(records) == [episode.key for episode in EPISODES]
    assert table(tmp_path / "parts") == table(tmp_path / "whole")
    assert json.loads((tmp_path / "parts" / "summary.json").read_text())["shards"] == 3
    assert "in 3 shards" in (tmp_path / "parts" / "report.html").read_text()
    sizes = [len(read_records(tmp_path / "parts" / "shards" / f"{i}-of-3")) for i in range(3)]
    assert sizes == [4, 4, 4]


def test_a_shard_that_died_is_finished_by_another_number_of_shards_and_nothing_runs_twice(sharded, tmp_path):
    expected = sharded("whole", (0, 1))
    sharded("parts", (0, 2))
    path = tmp_path / "parts" / "shards" / "0-of-2" / "episodes.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:3]) + lines[3][:50])  # killed in the middle of a write
    (path.parent / "summary.json").unlink()
    records = sharded("parts", (0, 1))
    assert verdicts(records) == verdicts(expected)
    assert table(tmp_path / "parts") == table(tmp_path / "whole")
    untouched = read_records(tmp_path / "parts" / "shards" / "0-of-2", torn=True)
    assert [records[record.key] for record in untouched] == untouched and len(untouched) == 3


def test_a_benchmark_leaves_one_record_in_any_order_of_shards(sharded, tmp_path):
    for index in (0, 1, 1, 0):  # starting an ended shard again adds nothing
        sharded("parts", (index, 2), init="benchmark")
    (record,) = (tmp_path / "parts" / "results").iterdir()
    assert json.loads(record.read_text())["overall"] == table(tmp_path / "parts")[0]


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("left", [(), ("summary.json",), ("summary.json", "results")])
def test_what_a_kill_at_the_end_left_undone_is_done_by_the_next_start(sharded, tmp_path, shards, left):
    """``left`` is what had been written by then; the report comes last."""
    out = tmp_path / "parts"
    for index in range(shards):
        sharded("parts", (index, shards), init="benchmark")
    expected, (record,) = table(out), (out / "results").iterdir()
    text = record.read_text()
    (out / "report.html").unlink()
    if "summary.json" not in left:
        (out / "summary.json").unlink()
    if "results" not in left:
        record.unlink()
    sharded("parts", (0, shards), init="benchmark")
    assert table(out) == expected and (out / "report.html").is_file()
    (found,) = (out / "results").iterdir()
    assert json.loads(found.read_text())["overall"] == json.loads(text)["overall"]


def test_shards_of_another_evaluation_are_not_mixed_in(sharded):
    sharded("parts", (0, 2))
    with pytest.raises(UserError, match=r"0-of-2: holds an evaluation with protocol\.seed = 0, this one has 4"):
        sharded("parts", (1, 2), seed=4)


def test_the_launcher_says_which_part_this_is(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax", None)
    assert own_shard({}) == own_shard({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}) == (0, 1)  # a batch script
    srun = {"SLURM_PROCID": "3", "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "4"}
    assert own_shard(srun) == (3, 4)
    assert own_shard({**srun, "JAX_PROCESS_ID": "1", "JAX_NUM_PROCESSES": "2"}) == (1, 2)
    with pytest.raises(UserError, match=r"shard '4/4' is not i/n with 0 <= i < n; for example --shard 0/4"):
        own_shard({**srun, "SLURM_PROCID": "4"})
    assert own_shard({**srun, "WMJAX_DISTRIBUTED": "auto"}) == (3, 4)
    assert own_shard({"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "3"}) == (2, 3)
    slice_ = {"TPU_WORKER_HOSTNAMES": "a,b,c,d", "TPU_WORKER_ID": "1"}  # of GKE
    assert own_shard(slice_) == (1, 4)
    assert own_shard({**slice_, "MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "1"}) == (5, 8)
    assert own_shard({"TPU_WORKER_HOSTNAMES": "localhost"}) == (0, 1)
    with pytest.raises(UserError, match=r"WMJAX_DISTRIBUTED is set, but only training .*; give --shard i/n"):
        own_shard({"WMJAX_DISTRIBUTED": "auto"})  # every host would do everything


def test_processes_of_jax_distributed_are_shards(monkeypatch):
    import jax

    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert own_shard({"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4"}) == (1, 2)


def test_the_command_runs_its_part(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = f"--policy noop --tasks 0,1 --episodes 1 --videos 0 --max-steps 8 --out o --env {ENV}"
    assert command.main([*arguments.split(), "--shard", "1/2"]) == 0
    assert "0/1" in capsys.readouterr().out and not (tmp_path / "o" / "episodes.jsonl").exists()
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    assert command.main(arguments.split()) == 0
    assert "0/2" in capsys.readouterr().out and len(read_records(tmp_path / "o")) == 2
