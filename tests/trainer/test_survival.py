"""A training that is stopped, killed or started twice ends as if nothing had happened: real processes, toy network."""

import itertools
import json
import logging
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from benchmarks.kill_chain import differences, metrics, run_chain, trees
from tests.trainer.toy import fit_toy, toy_config, toy_inputs
from wmjax.core import logs, signals
from wmjax.core.errors import UserError
from wmjax.data.store import TrainingStore
from wmjax.reporting.video.clips import write_video
from wmjax.trainer import checkpoint
from wmjax.trainer.metrics import MetricsWriter
from wmjax.trainer.sharding import MeshConfig

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def straight(store: TrainingStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was left alone."""
    run = tmp_path_factory.mktemp("straight")
    fit_toy(toy_inputs(store, toy_config()), run, toy_config())
    return run


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """The warnings of wmjax so far."""
    monkeypatch.setattr(logging.getLogger("wmjax"), "propagate", True)

    def found() -> list[str]:
        # Some versions of pytest capture a propagating logger's record twice: the record counts, not its captures.
        ours = {id(record): record for record in caplog.records if record.name.startswith("wmjax")}
        return [record.message for record in ours.values() if record.levelname == "WARNING"]

    return found


def start(store: TrainingStore, run: Path, **job: Any) -> subprocess.Popen:
    path = run.with_suffix(".json")
    path.write_text(json.dumps({"store": str(store.folder), "run": str(run), **job}))
    line = [sys.executable, "-m", "tests.trainer.toy", str(path)]
    return subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def events(run: Path) -> Counter[tuple[str, int]]:
    """How often each tag and step stands in a run's TensorBoard files."""
    found: Counter[tuple[str, int]] = Counter()
    for path in (run / "tensorboard").glob("events.*"):
        data = path.read_bytes()
        while data:
            size = struct.unpack("<Q", data[:8])[0]
            event = Event.FromString(data[12 : 12 + size])
            found.update((value.tag, event.step) for value in event.summary.value)
            data = data[16 + size :]
    return found


def test_a_signal_costs_no_step(store: TrainingStore, straight: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(store, run, signal="SIGTERM", at=6)
    _, error = process.communicate(timeout=900)
    assert process.returncode == 143, error
    assert error.splitlines()[-1] == "stopped by SIGTERM, step 6 of 8 is saved; run the same command again to resume"
    assert checkpoint.complete_steps(run / "checkpoints") == [4, 6]
    fit_toy(toy_inputs(store, toy_config()), run, toy_config())
    assert differences(run, straight) == []
    assert set(events(run).values()) == {1} and events(run).keys() == events(straight).keys()


@pytest.mark.parametrize(("asked", "step"), [(4, 4), (5, 4), (10, 8)])
def test_a_validation_that_a_signal_cut_short_is_made_up_for(
    store: TrainingStore, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: int, step: int
) -> None:
    """The loop asks once per step and once per batch of a validation: before the first, in it, before the last."""
    with monkeypatch.context() as patch:
        calls = itertools.count(1)
        patch.setattr(signals, "requested", lambda: next(calls) >= asked)
        with pytest.raises(signals.Stopped, match=f"step {step} of 8 is saved"):
            fit_toy(toy_inputs(store, toy_config()), tmp_path, toy_config())
    assert ("val", step) not in {(line["split"], line["step"]) for line in metrics(tmp_path)}
    fit_toy(toy_inputs(store, toy_config()), tmp_path, toy_config())
    assert differences(tmp_path, straight) == []


def test_killed_in_a_save_it_goes_on_from_the_checkpoint_before(
    store: TrainingStore, straight: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start(store, run, signal="SIGKILL")
    assert process.wait(600) == -signal.SIGKILL
    assert checkpoint.complete_steps(run / "checkpoints") == []
    assert [path.name for path in (run / "checkpoints").iterdir()] == [".saving-00000004"]
    fit_toy(toy_inputs(store, toy_config()), run, toy_config())
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == ["00000004", "00000008"]
    assert differences(run, straight) == []


@pytest.mark.parametrize("then", [MeshConfig(fsdp=2), MeshConfig(tensor=2)], ids=["fsdp", "tensor"])
def test_a_run_goes_on_with_another_mesh_and_compiles_once(
    store: TrainingStore, straight: Path, tmp_path: Path, warnings: Callable[[], list[str]], then: MeshConfig
) -> None:
    def end(step: int, *_: Any) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        fit_toy(toy_inputs(store, toy_config()), tmp_path, toy_config(), MeshConfig(data=2), on_checkpoint=end)
    last = fit_toy(toy_inputs(store, toy_config()), tmp_path, toy_config(), then)
    assert warnings() == []
    found, expected = trees(last), trees(straight / "checkpoints" / "00000008")
    names = [name for name in expected if name.startswith(("ema", "state['params"))]
    assert len(names) == 4
    for name in names:
        a, b = (np.frombuffer(each[name], np.float32) for each in (found, expected))
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5, err_msg=name)


def test_a_second_training_of_a_run_is_refused(store: TrainingStore, tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = start(store, run, pause=0.2, train={"steps": 400})
    # Until a step is logged: before, while it compiles, there is nothing to save.
    while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").read_text():
        assert first.poll() is None
        time.sleep(0.05)
    second = start(store, run)
    _, error = second.communicate(timeout=600)
    assert second.returncode == 2
    assert error.startswith(f"error: run {run} is in use by process {first.pid} on ") and error.count("\n") == 1
    first.send_signal(signal.SIGTERM)
    _, error = first.communicate(timeout=600)
    assert first.returncode == 143 and "is saved" in error


@pytest.mark.slow
def test_a_chain_of_kills_ends_bit_for_bit_where_an_undisturbed_run_does(store: TrainingStore, tmp_path: Path) -> None:
    job = {"store": str(store.folder), "run": "{run}", "pause": 0.05}
    code = "import json, sys; from tests.trainer.toy import main; sys.exit(main(json.loads(sys.argv[1])))"
    train = {"steps": 150, "checkpoint_every": 5, "eval_every": 25}
    command = [sys.executable, "-c", code, json.dumps({**job, "train": train})]
    result = run_chain(command, tmp_path, ["kill", "save", "term", "save", "term", "kill"], seed=0, timeout=600)
    assert result["faults"] == result["differences"] == []
    assert result["reached"][-1] < 150 and result["reached"] == sorted(result["reached"])


def test_evaluations_that_differ_in_a_picture_an_action_or_an_outcome_are_told_apart(
    straight: Path, tmp_path: Path
) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 1, 64, 64, 3), np.uint8)

    def evaluate(run: Path, *, frame: int = 0, action: float = 0.0, steps: int = 40, seconds: float = 1.0) -> Path:
        folder = run / "evaluations/00000004/smoke"
        (folder / "actions").mkdir(parents=True, exist_ok=True)
        write_video(folder / "task.mp4", np.roll(frames, frame, axis=0), [""] * 3, 5.0)
        np.save(folder / "actions/task.npy", np.full(3, action))
        (folder / "episodes.jsonl").write_text(json.dumps({"key": "task", "steps": steps, "seconds": seconds}) + "\n")
        return run

    for name in ("one", "other"):
        shutil.copytree(straight, tmp_path / name)
    one = evaluate(tmp_path / "one")
    assert differences(one, evaluate(tmp_path / "other", seconds=2.0)) == []
    prefix = "evaluations/00000004/smoke/"
    assert differences(one, evaluate(tmp_path / "other", frame=1)) == [f"{prefix}task.mp4"]
    assert differences(one, evaluate(tmp_path / "other", action=1.0)) == [f"{prefix}actions/task.npy"]
    assert differences(one, evaluate(tmp_path / "other", steps=39)) == [f"{prefix}episodes.jsonl task"]
    shutil.rmtree(tmp_path / "other/evaluations")
    assert len(differences(one, tmp_path / "other")) == 3


def test_damaged_newest_checkpoints_are_passed_over_in_one_line_each(
    store: TrainingStore, straight: Path, tmp_path: Path, warnings: Callable[[], list[str]]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    manifest = run / "checkpoints" / "00000008" / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"step": 8', b'"step": 9'))
    fit_toy(toy_inputs(store, toy_config()), run, toy_config())
    (warning,) = warnings()
    assert "00000008: manifest.json is not what manifest.sha256 says" in warning
    assert differences(run, straight) == []


def test_a_full_disk_is_named_by_who_writes_metrics_and_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """``/dev/full`` is a disk without any space."""
    for name in ("metrics.jsonl", "log.txt"):
        (tmp_path / name).symlink_to("/dev/full")
    writer = MetricsWriter(tmp_path, trackers=())
    with pytest.raises(UserError, match=f"{tmp_path}: no disk space left; free some space or choose another folder"):
        writer.write(1, "train", {"loss": 1.0})
    writer.close()
    log = logs.set_up(tmp_path / "log.txt")
    log.info("one")
    log.info("two")
    lines = sorted(line[9:] for line in capfd.readouterr().err.splitlines())
    assert lines == [
        "I one",
        "I two",
        f"W {tmp_path}/log.txt: No space left on device; the log goes on without this file",
    ]


def test_metrics_hold_each_step_once_after_a_resume(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path)
    for step in (1, 2, 3, 4):
        writer.write(step, "train", {"loss": 1.0 / step, "broken": float("nan")})
    writer.write(4, "val", {"loss": 0.5})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "spl')  # killed while it wrote
    writer = MetricsWriter(tmp_path, 3)
    assert writer.has(3, "train") and not writer.has(4, "val")
    writer.write(4, "train", {"loss": 0.25})
    writer.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["split"]) for line in lines] == [(step, "train") for step in (1, 2, 3, 4)]
    assert all("broken" not in line for line in lines)
    assert events(tmp_path) == {("train/loss", step): 1 for step in (1, 2, 3, 4)}
