"""Recording: refusals without a simulator, and one real recording that loses a worker and is resumed."""

import json
import multiprocessing
import threading
import time
from pathlib import Path

import pytest

from wmjax.core.errors import UserError
from wmjax.data.store import TrainingStore, part_names
from wmjax.experiment.data_config import DataConfig
from wmjax.record import main
from wmjax.recording import record as recording
from wmjax.recording.demonstration import DemonstrationConfig
from wmjax.sim.episode import RECORDING_VERSION
from wmjax.sim.libero import OBSERVATION_SPEC

SPEC = OBSERVATION_SPEC


def _settings(folder: Path, **changes: object) -> None:
    config = DemonstrationConfig(**changes)  # type: ignore[arg-type]
    recording._check_settings(folder, "libero_spatial", SPEC, config)


def test_a_folder_keeps_its_settings(tmp_path):
    _settings(tmp_path)
    _settings(tmp_path)
    with pytest.raises(UserError, match=r"demonstrations\.seed is 1, .* was recorded with 0"):
        _settings(tmp_path, seed=1)
    with pytest.raises(UserError, match=r"demonstrations\.perturbed_fraction is 0\.0"):
        _settings(tmp_path, perturbed_fraction=0.0)


def test_settings_that_are_off_do_not_rename_older_recordings(tmp_path):
    """Folders in existing caches are named by these hashes."""
    assert not {"target_velocity", "hold_steps"} & DemonstrationConfig().identity().keys()
    _settings(tmp_path)
    for changes in ({"target_velocity": 0.04}, {"hold_steps": 8}):
        data = DataConfig(demonstrations=DemonstrationConfig(**changes))
        assert data.identity() != DataConfig().identity()
        with pytest.raises(UserError, match=f"demonstrations.{next(iter(changes))} is .* was recorded with None"):
            _settings(tmp_path, **changes)


def test_recordings_of_an_older_expert_are_not_taken_for_new_ones(tmp_path, monkeypatch):
    _settings(tmp_path)
    identity = DataConfig().identity()
    for module in ("wmjax.recording.record", "wmjax.experiment.data_config"):
        monkeypatch.setattr(f"{module}.RECORDING_VERSION", 99)
    with pytest.raises(UserError, match=f"version is 99, .* was recorded with {RECORDING_VERSION}"):
        _settings(tmp_path)
    assert DataConfig().identity() != identity


def test_damaged_settings_are_named(tmp_path):
    (tmp_path / recording.SETTINGS).write_text("{")
    with pytest.raises(UserError, match=r"recording\.json: not valid JSON"):
        _settings(tmp_path)


BAD_OPTIONS = {
    ("--episodes", "0"): "record.episodes_per_task is 0; it must be at least 1 and at most 100000",
    ("--episodes", "-1"): "record.episodes_per_task is -1; it must be at least 1",
    ("--episodes", "1000000"): "at most 100000",
    ("--episodes", "many"): "record.episodes_per_task is 'many'; expected int",
    ("--workers", "-1"): "record.workers is -1; it must be at least 1",
    ("--workers", "0"): "record.workers is 0; it must be at least 1",
    ("--tasks", "0,x"): "'0,x' is not a list of numbers; write them as 0,1",
    ("--tasks", "-1"): "record.tasks[0] is -1; it must be at least 0",
    ("--perturbed", "2"): "record.demonstrations.perturbed_fraction is 2.0; it must be at least 0 and at most 1",
    ("--seed", "-3"): "record.demonstrations.seed is -3; it must be at least 0",
    ("--image-size", "0"): "record.image_size is 0",
    ("--frame-stride", "0"): "record.frame_stride is 0",
    ("--target-velocity", "0.6"): "record.demonstrations.target_velocity is 0.6; it must be at least 0 and at most 0.5",
    ("--hold-steps", "360"): "demonstrations.hold_steps is 360, and an episode ends after max_steps 360; lower it",
    ("--label-steps", "-1"): "record.demonstrations.label_steps is -1",
    ("--record.demonstrations.failures.most", "0"): "record.demonstrations.failures.most is 0",
    (
        "--record.episodes",
        "3",
    ): "unknown setting 'record.episodes'; did you mean record.first_episode",
    ("--data.tasks", "0"): "unknown section of settings 'data'; known: record",
    ("--episode", "3"): "unknown option '--episode'; did you mean --episodes",
}


@pytest.mark.parametrize("option", BAD_OPTIONS)
def test_bad_options_are_named_and_leave_nothing(tmp_path, capsys, option):
    out = tmp_path / "store"
    assert main(["--out", str(out), *option]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and BAD_OPTIONS[option] in error
    assert not out.exists()


def test_no_disk_space_is_refused_before_any_work(tmp_path, capsys):
    out = tmp_path / "store"
    assert main(["--out", str(out), "--episodes", "100000"]) == 2
    assert "GB needed" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.sim
@pytest.mark.long  # test_labeller.py resumes a recording, and rollout/test_pool.py replaces dead workers
def test_recording_survives_a_dead_worker_and_resumes(tmp_path, capsys):
    command = ["--tasks", "2", "--episodes", "1", "--workers", "1", "--out", str(tmp_path), "--perturbed", "0"]
    killer = threading.Thread(target=_kill_first_child)
    killer.start()
    assert main(command) == 0
    killer.join()
    store = TrainingStore(tmp_path)
    assert part_names(tmp_path) == ["libero_spatial-02-00000"]
    assert store.spec.simulator.startswith("libero") and store.tasks[0].instruction.startswith("pick up")
    written = (tmp_path / "manifest.json").stat().st_mtime_ns
    assert main(command) == 0  # nothing left to do: no simulator, no new store
    assert (tmp_path / "manifest.json").stat().st_mtime_ns == written
    assert json.loads((tmp_path / recording.SETTINGS).read_text())["suite"] == "libero_spatial"


def _kill_first_child() -> None:
    while not (children := multiprocessing.active_children()):
        time.sleep(0.05)
    children[0].kill()


@pytest.mark.sim
def test_an_unknown_suite_reaches_the_user_as_one_line(tmp_path, capsys):
    out = tmp_path / "store"
    assert main(["--suite", "libero_spacial", "--tasks", "0", "--episodes", "1", "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert "unknown suite 'libero_spacial'; did you mean" in error and "Traceback" not in error
    assert not out.exists()
