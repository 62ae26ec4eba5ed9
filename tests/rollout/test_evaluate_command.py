"""The command line: one clear line for bad input, a table for good input."""

import dataclasses
import hashlib
import itertools
import json
from pathlib import Path

import pytest

import wmjax.evaluate as command
from tests.rollout.fakes import ENV, SPEC
from tests.rollout.test_replay import recorded
from wmjax.core.settings import build
from wmjax.data.store import finalize, write_part
from wmjax.experiment.config import load, to_dict
from wmjax.pipeline.evaluate_checkpoint import identity
from wmjax.rollout.protocol import CHANGES, Protocol, load_protocol, protocol_folder
from wmjax.rollout.results import read_header
from wmjax.sim.libero import ACTION_SPEC
from wmjax.trainer.checkpoint import FORMAT_VERSION, MANIFEST, SEAL


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policy", "noop", "--protocol", "spatial_deev"], "did you mean spatial_dev"),
        (["--policy", "noop", "--tasks", "0,12"], "tasks contains 12"),
        (["--policy", "noop", "--protocol", "libero_spatial", "--episodes", "60"], "has 50 initial states"),
        (["--policy", "replay"], "--data is missing"),
        (["--policy", "replay", "--data", "nowhere"], "nowhere"),
        (["--run", "nowhere"], "run 'nowhere' is not a folder"),
        (["--policy", "noop", "--shard", "2/2"], "shard '2/2' is not i/n with 0 <= i < n"),
    ],
)
def test_bad_input_is_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command.main(arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error
    assert not list(tmp_path.iterdir())


def test_a_table_is_printed_and_the_folder_says_what_was_changed(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = f"--policy noop --tasks 0,1 --episodes 1 --videos 0 --max-steps 8 --env {ENV}"
    assert command.main(arguments.split()) == 0
    out = capsys.readouterr().out
    assert "libero_spatial/1" in out and "0/2" in out
    (folder,) = (tmp_path / "runs" / "noop").iterdir()
    assert folder.name == "spatial_dev-tasks0,1-n1-max_steps8-envtests.rollout.fakes.FakeEnv"
    assert {path.name for path in folder.iterdir()} == {
        "header.json",
        "episodes.jsonl",
        "summary.json",
        "actions",
        "report.html",
        ".lock",
    }


def test_every_field_of_a_protocol_has_a_flag_and_the_header_records_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = {short.setting: name for name, short in CHANGES.items()}
    assert {"name", *flags} == {field.name for field in dataclasses.fields(Protocol)}
    changed = {
        "suite": "libero_object", "tasks": (3,), "episodes_per_task": 1, "init": "benchmark", "first_index": 2,
        "open_loop_horizon": 4, "execution_delay": 3, "target_velocity": 0.1, "camera_dropout": 0.25, "max_steps": 8,
        "seed": 5, "env": ENV,
    }  # fmt: skip
    words = [(f"--{flags[f]}", ",".join(map(str, v)) if isinstance(v, tuple) else str(v)) for f, v in changed.items()]
    assert command.main(["--policy", "noop", "--videos", "0", "--out", "o", *itertools.chain(*words)]) == 0
    protocol = read_header(tmp_path / "o")["protocol"]
    assert build(Protocol, protocol) == dataclasses.replace(load_protocol("spatial_dev"), **changed)


def test_a_change_that_does_not_fit_names_its_field(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words, message in (
        ("--init fixed", "protocol.init is 'fixed'; choose one of 'benchmark', 'random'"),
        ("--camera-dropout 2", "protocol.camera_dropout is 2.0; it must be at least 0 and at most 1"),
        ("--ensemble nan", "ensemble is nan"),
        ("--first-index 49 --protocol libero_goal", "has 50 initial states"),
    ):
        assert command.main(["--policy", "noop", *words.split()]) == 2
        assert message in capsys.readouterr().err


def test_a_corruption_has_a_separate_folder(tmp_path):
    published = load_protocol("spatial_dev")
    folder = protocol_folder(tmp_path, load_protocol("spatial_dev", corruption="closed"), published)
    assert folder.name == "spatial_dev-corruptionclosed"


def test_an_identity_needs_a_checkpoint(tmp_path):
    from wmjax.core.errors import UserError

    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError):
        identity(tmp_path)


def write_manifest(folder: Path, meta: dict[str, object]) -> None:
    """What an evaluation's identity is read from: a checkpoint's manifest and the seal on it."""
    text = json.dumps({"format_version": FORMAT_VERSION, "step": 1, "sha256": {}, "meta": meta}).encode()
    (folder / MANIFEST).write_bytes(text)
    (folder / SEAL).write_text(f"{hashlib.sha256(text).hexdigest()}  {MANIFEST}\n")


def test_the_recipes_hash_tells_what_was_trained_and_not_how_it_was_run(tmp_path):
    def recipe(name: str, *, steps: int = 9, workers: int = 2, protocol: str = "a", weights: str = "w") -> str:
        settings = {"recipe": "e0", "scale": "mini", "dataset": "spatial", "data": {"workers": workers}}
        settings |= {"train": {"seed": 0, "steps": steps}, "evaluation": {"protocol": protocol}}
        meta = {"experiment": settings, "specs": {"encoder": {"weights_hash": weights}}}
        folder = tmp_path / name
        folder.mkdir()
        write_manifest(folder, meta)
        return identity(folder)["recipe_hash"]

    same, other = recipe("one"), recipe("two", workers=4, protocol="b")
    assert same == other
    assert len({same, recipe("three", steps=10), recipe("four", weights="x")}) == 3


def test_an_identity_says_what_the_command_line_changed_and_what_was_trained_on(tmp_path):
    changes = {"optimizer": {"prophet_multiplier": 5.0}, "train": {"seed": 3, "threads": 1}}
    settings = to_dict(load("e2_mse", overrides=changes))
    meta = {"experiment": settings, "specs": {"encoder": None}}
    write_manifest(tmp_path, meta)
    expected = {"changed": {"optimizer.prophet_multiplier": 5.0}, "suite": "libero_spatial", "tasks": [0, 1, 2, 4, 6]}
    assert identity(tmp_path)["training"] == expected


def test_replays_that_fail_are_an_error(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, push, status in (("good", 0.5, 0), ("bad", 0.1, 1)):
        write_part(tmp_path / name, "0", recorded(1_000_000, push, -4.0), SPEC)
        finalize(tmp_path / name, SPEC, ACTION_SPEC)
        arguments = f"--policy replay --data {name} --tasks 2 --episodes 1 --videos 0 --out {name}-replay --env {ENV}"
        assert command.main(arguments.split()) == status
    assert "fewer than 99 % of the replays succeed" in capsys.readouterr().err


def test_every_field_can_be_given_by_its_own_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = "--protocol.tasks [3] --protocol.episodes_per_task=1 --max-steps 8 --protocol.execution_delay 3"
    assert command.main(["--policy", "noop", "--videos", "0", "--out", "o", "--env", ENV, *words.split()]) == 0
    protocol = build(Protocol, read_header(tmp_path / "o")["protocol"])
    assert (protocol.tasks, protocol.episodes_per_task, protocol.max_steps, protocol.execution_delay) == ((3,), 1, 8, 3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--protocol.delay", "3"], "protocol.delay"),
        (
            ["--train.steps", "3"],
            "unknown option --train.steps; of these sections the command takes",
        ),
        (["--protocol.max_steps", "many"], "protocol.max_steps is 'many'; expected int"),
        (["--workers=1", "stray"], "unexpected argument 'stray'"),
        (["--workers", "0"], "evaluation.workers is 0; it must be at least 1"),
        (["--evaluation.videos", "-1"], "evaluation.videos is -1; it must be at least 0"),
        (["--episodes", "many"], "protocol.episodes_per_task is 'many'; expected int"),
    ],
)
def test_a_bad_setting_is_one_line(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command.main(["--policy", "noop", *words]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error
