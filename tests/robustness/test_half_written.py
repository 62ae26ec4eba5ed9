"""What was refused, or stopped on the way, leaves nothing that a corrected command stumbles over or takes for whole."""

import dataclasses
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.robustness.sources import SIZE, edit_table, set_column, write_hdf5, write_v21
from tests.rollout.runs import save_run, tiny_experiment
from wmjax.core.errors import UserError
from wmjax.core.paths import atomic_folder
from wmjax.data.formats import libero_hdf5
from wmjax.data.formats.lerobot.convert import convert
from wmjax.experiment.config import to_dict
from wmjax.experiment.plan import save_settings
from wmjax.policy import places
from wmjax.policy.export_backbone import export_backbone
from wmjax.policy.saved import find_policy, save_policy
from wmjax.reporting.evaluation_page import write_report
from wmjax.rollout.results import Results, read_header


def test_a_run_that_never_trained_does_not_fix_its_settings(tmp_path: Path) -> None:
    values = to_dict(tiny_experiment("e2", "flow"))
    for steps in (10, 20, 30):
        save_settings(tmp_path, {**values, "train": {**values["train"], "steps": steps}})
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(UserError, match=r"started with train.steps = 30, now it is 40"):
        save_settings(tmp_path, {**values, "train": {**values["train"], "steps": 40}})


def test_an_evaluation_without_an_episode_does_not_fix_its_header(tmp_path: Path) -> None:
    for name in ("noop", "random", "expert"):
        Results(tmp_path, {"actor": name})
    assert read_header(tmp_path)["actor"] == "expert"
    with pytest.raises(UserError):  # no episode yet
        write_report(tmp_path)
    assert not list(tmp_path.glob("*.html"))


@pytest.mark.parametrize("settings", [{"gripper": "open-zero"}, {"frame_stride": 2}, {"image_size": 16}])
def test_an_import_that_was_refused_at_its_first_episode_is_corrected(settings: dict[str, Any], tmp_path: Path) -> None:
    """By another setting, in the same folder."""
    source = write_v21(tmp_path / "data", (9, 7))
    for path in sorted(source.glob("data/*/*.parquet")):

        def zero_or_one(table: Any) -> Any:
            action = np.asarray(table["action"].to_pylist())
            action[:, 6] = np.arange(len(action)) % 2
            return set_column("action", action.tolist())(table)

        edit_table(path, zero_or_one)
    with pytest.raises(UserError, match=r"gripper commands lie in \[0, 1\]"):
        convert(str(source), tmp_path / "out", image_size=SIZE)
    corrected = {"image_size": SIZE, "gripper": "open-zero", **settings}
    assert len(convert(str(source), tmp_path / "out", **corrected).episodes) == 2


def test_an_import_of_hdf5_is_corrected_too(tmp_path: Path) -> None:
    path = write_hdf5(tmp_path / "KITCHEN_SCENE3_turn_on_the_stove_demo.hdf5")
    with h5py.File(path, "a") as file:
        for name in list(file["data"].attrs):
            del file["data"].attrs[name]
    with pytest.raises(UserError, match="give --rows before"):
        libero_hdf5.convert(path, tmp_path / "out", image_size=16)
    assert len(libero_hdf5.convert(path, tmp_path / "out", image_size=16, rows="before").episodes) == 2


class StoppedError(Exception):
    """A kill, a full disk or a bug."""


def stop(*_: Any, **__: Any) -> None:
    raise StoppedError


def test_an_export_that_is_stopped_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = save_run(tmp_path / "run", "e0", "regression")
    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr("wmjax.models.backbones.qwen2_5_vl.backbone.shutil.copyfile", stop)
        export_backbone(run, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    export_backbone(run, tmp_path / "out")
    assert (tmp_path / "out" / "config.json").is_file()


def test_a_half_written_policy_is_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = save_run(tmp_path / "run", "e0", "regression")
    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr("wmjax.policy.saved.write_json", stop)
        save_policy(run, tmp_path / "out")
    with pytest.raises(UserError):
        find_policy(tmp_path / "out")


def test_assets_are_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = tiny_experiment("e2", "flow")
    folder = tmp_path / "encoder"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_text("{}", encoding="utf-8")
    experiment = dataclasses.replace(experiment, encoder=dataclasses.replace(experiment.encoder, model=str(folder)))
    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(places.shutil, "copyfile", stop)
        places.copy_assets(tmp_path / "run", experiment)
    assert not list((tmp_path / "run").rglob("encoder"))
    places.copy_assets(tmp_path / "run", experiment)
    copy = tmp_path / "run" / places.ASSETS / "encoder.model" / "encoder"
    assert sorted(path.name for path in copy.iterdir()) == ["config.json", "model.safetensors"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(StoppedError), atomic_folder(tmp_path / "a" / "b") as part:
        (part / "file").touch()
        raise StoppedError
    assert not list((tmp_path / "a").iterdir())
    with atomic_folder(tmp_path / "a" / "b") as part:
        (part / "file").touch()
        assert not (tmp_path / "a" / "b").exists()
    assert (tmp_path / "a" / "b" / "file").is_file()
