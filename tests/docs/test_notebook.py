"""The notebook: a valid file without outputs, and cells that run.

In every run of the tests the cells run for real, but for the commands, whose options are checked and whose results are
prepared. That the commands produce such results is shown by the long test, which runs all of it at smoke size.
"""

import ast
import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from PIL import Image

from tests.docs.commands import ROOT, check_arguments
from tests.rollout.runs import save_run
from wmjax.reporting.video.clips import write_video

NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"
STORE = ROOT / "tests" / "fixtures" / "two_episodes"


def code_cells() -> list[str]:
    book = nbformat.read(NOTEBOOK, as_version=4)
    return [cell.source for cell in book.cells if cell.cell_type == "code"]


def test_it_is_valid_and_holds_no_outputs() -> None:
    book = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(book)
    assert book.nbformat_minor >= 5 and book.metadata.language_info.name == "python"
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in book.cells)
    # Prose before every step.
    kinds = [cell.cell_type for cell in book.cells]
    assert kinds[0] == kinds[-1] == "markdown" and "code-code-code" not in "-".join(kinds)


class Commands:
    """Stands for the notebook's ``command``: checks a command line, and puts what it would have made in its place."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, name: str, *words: object) -> None:
        line = [str(word) for word in words]
        check_arguments(f"wmjax.{name}", line)
        self.names.append(name)
        given = dict(itertools.pairwise(line))
        if name == "record":
            shutil.copytree(STORE, given["--out"])
        elif name == "train":
            assert Path(given["--data.path"]).is_dir()
            Path(given["--run"]).mkdir(parents=True)
            if given["--config"] == "e2_flow":  # the one that is loaded; another head compiles faster
                save_run(Path(given["--run"]), "e2", "regression")
            else:
                assert given["--config"] == "e0_flow"
        elif name == "evaluate":
            assert Path(given["--run"]).is_dir()
            frames = np.zeros((2, 2, 112, 112, 3), np.uint8)
            write_video(Path(given["--out"]) / "videos" / "task-2__success.mp4", frames, ["caption"] * 2, rate=5)
        elif name == "compare":
            assert all(Path(folder).is_dir() for folder in line)


@pytest.mark.slow
def test_the_cells_run_on_what_the_commands_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    commands, shown = Commands(), []
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, source in enumerate(code_cells()):
        shown.append(run_cell(source, names))
        if number == 0:
            names["command"] = commands
    assert commands.names == ["record", "view", "train", "train", "evaluate", "evaluate", "compare"]
    sheet, imagined = (value for value in shown if isinstance(value, Image.Image))
    assert sheet.size == (8 * 112, 2 * 112) and imagined.size[1] == 2 * (4 * 12 + 4)
    assert np.ptp(np.asarray(sheet)) > 100 and np.ptp(np.asarray(imagined)) > 100
    (videos,) = (value for value in shown if hasattr(value, "_repr_html_"))
    assert "task-2__success" in videos._repr_html_() and "data:video/mp4;base64," in videos


def run_cell(source: str, names: dict[str, Any]) -> Any:
    """Runs a cell as a notebook does: the value of its last expression is what is shown."""

    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, str(NOTEBOOK), "exec"), names)
    return None if last is None else eval(compile(ast.Expression(last.value), str(NOTEBOOK), "eval"), names)


@pytest.mark.long  # records, trains twice and evaluates twice: minutes
@pytest.mark.sim
def test_the_whole_notebook_runs_at_smoke_size(tmp_path: Path) -> None:
    script = tmp_path / "quickstart.py"
    script.write_text("\n\n".join(code_cells()), encoding="utf-8")
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "WMJAX_CACHE": str(tmp_path / "cache"),
        "XLA_FLAGS": "--xla_backend_optimization_level=1",
    }
    line = [sys.executable, str(script)]
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "world/copy_error" in done.stdout and "McNemar" in done.stdout
    work = tmp_path / "quickstart"
    assert (work / "demonstrations.html").stat().st_size > 100_000
    for variant in ("e0", "e2"):
        assert len((work / "evaluations" / variant / "episodes.jsonl").read_text().splitlines()) == 2
        assert list((work / "evaluations" / variant / "videos").glob("*.mp4"))
