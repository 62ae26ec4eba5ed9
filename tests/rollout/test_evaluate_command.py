"""The command line: one clear line for bad input, a table for good input."""

import pytest

import wmjax.evaluate as command
from tests.rollout.fakes import ENV, SPEC
from wmjax.rollout import actors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policy", "noop", "--protocol", "spatial_deev"], "did you mean spatial_dev"),
        (["--policy", "noop", "--tasks", "0,12"], "tasks contains 12"),
        (["--policy", "noop", "--protocol", "libero_spatial", "--episodes", "60"], "has 50 initial states"),
        (["--policy", "replay"], "--data is missing"),
        (["--policy", "replay", "--data", "nowhere"], "nowhere"),
        (["--run", "nowhere"], "--run 'nowhere' is not a folder"),
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
    real = command.evaluate
    monkeypatch.setattr(command, "evaluate", lambda *args, **more: real(*args, **more, env_factory=ENV))
    monkeypatch.setattr(actors, "ObservationSpec", lambda: SPEC)
    arguments = "--policy noop --tasks 0,1 --episodes 1 --videos 0 --max-steps 8"
    assert command.main(arguments.split()) == 0
    out = capsys.readouterr().out
    assert "libero_spatial/1" in out and "0/2" in out
    (folder,) = (tmp_path / "runs" / "noop").iterdir()
    assert folder.name == "spatial_dev-tasks0,1-n1-max_steps8"
    assert {path.name for path in folder.iterdir()} == {"header.json", "episodes.jsonl", "summary.json", "report.html"}


def test_an_identity_needs_a_checkpoint(tmp_path):
    from wmjax.errors import UserError

    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError):
        command.identity(tmp_path)


def test_evaluating_imports_neither_jax_nor_the_simulator():
    import subprocess
    import sys

    code = "import sys, wmjax.evaluate; print({'jax', 'mujoco', 'torch', 'libero'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "set()"
