"""Runs that are read on another machine: other locations for their settings, and the copies in their folder."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from tests.rollout.runs import parameters, plain_specs, tiny_experiment
from wmjax.core.errors import UserError
from wmjax.core.settings import parse_overrides
from wmjax.encoders.vjepa2.files import MINI_FOLDER
from wmjax.experiment.config import FOLDERS, Experiment, load, to_dict
from wmjax.experiment.plan import save_settings
from wmjax.models.backbones.qwen2_5_vl.prompt import MINI_TOKENIZER
from wmjax.models.prompts import make_prepare
from wmjax.policy import places
from wmjax.policy.places import ASSETS, copy_assets, read_places
from wmjax.policy.policy import load_policy
from wmjax.policy.saved import find_policy, save_policy
from wmjax.sim.libero import OBSERVATION_SPEC
from wmjax.trainer import checkpoint


def named(here: Path) -> Experiment:
    """An experiment whose encoder and tokenizer are folders of the machine that it is trained on."""
    encoder = shutil.copytree(MINI_FOLDER, here / "our_encoder")
    tokenizer = shutil.copytree(MINI_TOKENIZER, here / "our_tokenizer")
    (tokenizer / "model.safetensors").write_bytes(b"0" * 1000)  # of a whole checkpoint, and not needed for prompts
    experiment = tiny_experiment("e2", "flow")
    return dataclasses.replace(
        experiment,
        encoder=dataclasses.replace(experiment.encoder, model=str(encoder)),
        prompt=dataclasses.replace(experiment.prompt, tokenizer=str(tokenizer)),
    )


def train(run: Path, experiment: Experiment) -> Path:
    """What a training leaves, without the training."""
    hashes = make_prepare(experiment.prompt, experiment.model, OBSERVATION_SPEC).hashes
    specs = plain_specs(OBSERVATION_SPEC)
    meta = {"experiment": to_dict(experiment), "specs": specs, "backbone_hash": None, "prompt": hashes}
    copy_assets(run, experiment)
    checkpoint.save(run / "checkpoints", 1, {"ema": parameters(experiment)}, meta)
    return run


def acts(path: Path, **options: Any) -> np.ndarray:
    """The chunk of a policy that is read from there."""
    policy = load_policy(path, batch_size=1, open_loop_horizon=4, **options)
    return np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(policy.prompt("lift the bowl"))])


@pytest.mark.slow
def test_a_runs_folder_moves_to_another_machine_whole(tmp_path: Path) -> None:
    experiment = named(tmp_path / "here")
    run = train(tmp_path / "here" / "run", experiment)
    before = acts(run)
    copied = {path.relative_to(run / ASSETS).as_posix() for path in (run / ASSETS).rglob("*") if path.is_file()}
    assert {"encoder.model/our_encoder/config.json", "encoder.model/our_encoder/model.safetensors"} <= copied
    assert "prompt.tokenizer/our_tokenizer/tokenizer.json" in copied
    assert "prompt.tokenizer/our_tokenizer/model.safetensors" not in copied
    save_policy(run, tmp_path / "exported")
    moved = Path(shutil.move(run, tmp_path / "there"))
    shutil.rmtree(tmp_path / "here")
    for place in (moved, tmp_path / "exported"):
        found = find_policy(place).experiment
        assert Path(found.encoder.model).parent == (place / ASSETS / "encoder.model").resolve()
        np.testing.assert_array_equal(acts(place), before)


def test_the_copies_are_used_if_the_original_changed(tmp_path: Path) -> None:
    experiment = named(tmp_path)
    run = train(tmp_path / "run", experiment)
    before = acts(run)
    (tmp_path / "our_encoder" / "model.safetensors").write_bytes(b"another")
    (tmp_path / "our_tokenizer" / "tokenizer.json").write_text("{}", encoding="utf-8")
    copy_assets(run, experiment)  # a run that resumes
    np.testing.assert_array_equal(acts(run), before)


@pytest.mark.slow
def test_large_files_are_not_copied_and_their_place_can_be_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "MAX_BYTES", 100)
    run = train(tmp_path / "run", named(tmp_path / "here"))
    before = acts(run)
    assert not (run / ASSETS).exists()
    moved = Path(shutil.move(tmp_path / "here", tmp_path / "there"))
    with pytest.raises(UserError, match=r"prompt.tokenizer .* is neither a folder .* give its place as --prompt.tok"):
        acts(run)
    tokenizer = {"prompt": {"tokenizer": str(moved / "our_tokenizer")}}
    with pytest.raises(UserError, match=r"encoder .* is neither .* pass the folder as --encoder.model"):
        acts(run, places=tokenizer)
    both = {**tokenizer, "encoder": {"model": str(moved / "our_encoder")}}
    np.testing.assert_array_equal(acts(run, places=both), before)
    np.testing.assert_array_equal(
        acts(run, places={"prompt": {"tokenizer": "mini"}, "encoder": {"model": "mini"}}), before
    )
    (moved / "our_tokenizer" / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    with pytest.raises(UserError, match=r"hash|template"):
        acts(run, places=both)


def test_a_command_line_may_only_change_places() -> None:
    words = [word for group, name in FOLDERS for word in (f"--{group}.{name}", f"somewhere/{name}")]
    found = read_places(parse_overrides([*words, "--protocol.seed", "3"]))
    assert {(group, name) for group, names in found.items() for name in names} == set(FOLDERS)
    assert found["encoder"] == {"path": "somewhere/path", "model": "somewhere/model"}
    for wrong in (["--train.steps", "4"], ["--encoder.views", "2"], ["--data.tasks", "[0]"], ["--encoder", "mini"]):
        with pytest.raises(UserError, match=r"unknown option --.* the command takes --train.backbone_weights, "):
            read_places(parse_overrides(wrong))
    for value in ("3", "true", "[1]", "1.5"):
        with pytest.raises(UserError, match=r"--prompt.tokenizer is .*; give a folder, a URL or the id of a hub"):
            read_places(parse_overrides(["--prompt.tokenizer", value]))


def test_a_place_that_the_run_does_not_have_is_named(tmp_path: Path) -> None:
    values = to_dict(tiny_experiment("e0", "flow"))
    del values["encoder"]["model"]
    with pytest.raises(UserError, match=r"--encoder.model: the run has no such setting; leave it out"):
        places.experiment_at(values, tmp_path, {"encoder": {"model": "mini"}})


@pytest.mark.parametrize(("group", "name"), [*FOLDERS, ("train", "init_from")])
def test_relative_places_are_made_absolute_when_a_run_is_planned(
    group: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub" / "folder").mkdir(parents=True)
    values = {"sub/folder": tmp_path / "sub" / "folder", "./sub": tmp_path / "sub", "nothing": Path("nothing")}
    for given, expected in values.items():
        found = to_dict(load("e2_flow", "smoke", overrides={group: {name: given}}))
        assert found[group][name] == str(expected)


@pytest.mark.parametrize(("group", "name"), FOLDERS)
def test_a_run_resumes_with_another_place_but_not_without_one(group: str, name: str, tmp_path: Path) -> None:
    """Whether the other place holds the same is checked by hash."""
    values = to_dict(tiny_experiment("e2", "flow"))
    values[group][name] = "/here/it"
    save_settings(tmp_path, values)
    (tmp_path / "metrics.jsonl").touch()
    values[group][name] = "/there/it"
    save_settings(tmp_path, values)
    values[group][name] = ""
    with pytest.raises(UserError, match=rf"was started with {group}.{name} = '/there/it', now it is ''"):
        save_settings(tmp_path, values)
