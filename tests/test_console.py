"""The console script ``wmjax``: it lists what can be run and hands over to it."""

import os
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from wmjax.core import console

ROOT = Path(__file__).parents[1]


def wmjax(*arguments: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Runs the script's entry point in a separate process, in another folder."""
    line = [sys.executable, "-c", "import sys; from wmjax.core.console import main; sys.exit(main())", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "WMJAX_CACHE": str(tmp_path / "cache")}
    return subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=300)


def test_the_script_is_declared() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert EntryPoint("wmjax", scripts["wmjax"], "console_scripts").load() is console.main


def test_every_command_is_listed_with_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    found = console.commands()
    assert {"train", "evaluate", "doctor"} <= found.keys()
    assert set(found) == {path.stem for path in (ROOT / "wmjax").glob("*.py")} - {"__init__", "__main__"}
    for name, summary in found.items():
        assert summary[0].isupper() and summary.endswith("."), f"wmjax/{name}.py: its docstring begins {summary!r}"
        assert f"  {name} " in console.usage() and summary in console.usage()


@pytest.mark.slow
def test_a_command_gets_its_arguments_and_sets_the_status(tmp_path: Path) -> None:
    done = wmjax("train", "--config", "e2_flo", "--dry-run", tmp_path=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: unknown recipe 'e2_flo'; did you mean e2_flow")
    done = wmjax("compare", "--help", tmp_path=tmp_path)
    assert done.returncode == 0 and "usage: python -m wmjax.compare" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        ((), 2, "usage: wmjax COMMAND"),
        (("--help",), 0, "usage: wmjax COMMAND"),
        (("trian",), 2, "error: unknown command 'trian'; did you mean train"),
    ],
)
def test_an_unknown_command_is_refused_at_once(
    arguments: tuple[str, ...], status: int, text: str, tmp_path: Path
) -> None:
    done = wmjax(*arguments, tmp_path=tmp_path)
    assert done.returncode == status and text in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
