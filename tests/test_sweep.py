"""A sweep's plan and its finished cells: what is refused, what is left, and tables from the JSON alone."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from wmjax.core.errors import UserError
from wmjax.experiment.config import load
from wmjax.experiment.sweep_plan import finished, read_plan, resolve, results_folder
from wmjax.pipeline import sweep as pipeline
from wmjax.reporting.sweep_tables import read_results, write_tables
from wmjax.sweep import main
from wmjax.train import parser

ROOT = Path(__file__).parents[1]
PLAN = """
settings.train.steps = 20

[cells.short]
config = "e0_mse"
scale = "smoke"
seeds = [0, 1]
minutes = 2
protocols = ["smoke"]

[cells.long]
config = "e2_flow"
scale = "smoke"
minutes = 4
protocols = ["smoke"]
episodes = 1
settings.train.steps = 40
"""


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "plan.toml"
    path.write_text(PLAN)
    return path


def fake_result(path: Path, cell, successes: int = 3) -> None:
    """What a finished cell leaves behind."""
    episodes = {
        f"libero_spatial/{task}/random/{index}": ["success" if index < successes else "failure", 100 + index]
        for task in (10, 2)
        for index in range(5)
    }
    content = {
        **cell.identity,
        "cell": cell.cell,
        "seed": cell.seed,
        "minutes": {"stated": cell.minutes, "training": 1.5, "evaluation": 0.5},
        "evaluations": {"smoke": {"episodes": episodes}},
    }
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))


def test_a_cell_has_its_own_settings_and_the_plans(plan: Path) -> None:
    cells = resolve(read_plan(plan))
    assert [cell.name for cell in cells] == ["short-s0", "short-s1", "long-s0"]
    assert [cell.experiment.train.steps for cell in cells] == [20, 20, 40]
    assert [cell.experiment.train.seed for cell in cells] == [0, 1, 0]
    assert [cell.protocols[0].episodes_per_task for cell in cells] == [2, 2, 1]
    assert cells[2].protocols[0].tasks == (2,)


def test_the_train_command_reads_back_the_settings_of_a_cell(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(
        '[cells.a]\nconfig = "e0_l1"\nminutes = 1\nsettings.train.backbone_weights = "10"\n'
        "settings.data.tasks = [3, 1]\nsettings.model.use_state = false\nsettings.train.ema_decay = 0.9\n"
    )
    (cell,) = resolve(read_plan(path))
    options, settings = parser().read(cell.arguments)
    assert load(options.config, options.scale, options.dataset, settings) == cell.experiment


BAD = {
    "speed = 3": r"unknown setting .cells\['short'\]\.speed",
    "minutes = -1": r"cells\['short'\]\.minutes is -1",
    'scale = "smal"': "unknown scale 'smal'",
    "seeds = []": "seeds is",
    "seeds = [3, 3]": "each once",
    'protocols = ["smok"]': "smoke",
    "settings.train.step = 3": r"train\.step'; did you mean",
    "settings.train.seed = 3": "name the seeds in seeds",
}


@pytest.mark.parametrize("line", BAD)
def test_a_bad_plan_is_one_line(plan: Path, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    key = line.split(" = ")[0]
    kept = (
        [row for row in PLAN.splitlines() if not row.startswith(f"{key} = ")]
        if "." not in key
        else [*PLAN.splitlines()]
    )
    plan.write_text("\n".join(kept).replace("[cells.short]", f"[cells.short]\n{line}"))
    with pytest.raises(UserError, match=BAD[line]):
        resolve(read_plan(plan))
    assert main([str(plan)]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_a_plan_without_cells_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.toml").write_text("cells = {}")
    with pytest.raises(UserError, match="cells is empty"):
        read_plan(tmp_path / "empty.toml")


def test_finished_cells_are_not_run_again(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = resolve(read_plan(plan))
    fake_result(results_folder(plan, read_plan(plan)) / "short-s1.json", cells[1])
    ran: list[str] = []

    def run_cell(cell, folder: Path, name: str) -> int:
        ran.append(cell.name)
        return 3 if cell.name == "short-s0" else 0

    monkeypatch.setattr(pipeline, "run_cell", run_cell)
    assert pipeline.sweep(plan) == 1
    assert ran == ["short-s0", "long-s0"]
    ran.clear()
    assert pipeline.sweep(plan, minutes=3) == 1
    assert ran == ["short-s0"]


STOPPED = """
import dataclasses, sys
from pathlib import Path
from wmjax.core import signals
from wmjax.core.command import run_command
from wmjax.experiment.sweep_plan import read_plan, resolve
from wmjax.pipeline.sweep import run_cell
signals.GRACE = 0.2
cell = dataclasses.replace(resolve(read_plan(Path(sys.argv[1])))[0], through=("tests.slow_to_stop",))
sys.modules["__main__"].__spec__ = type("Spec", (), {"name": "wmjax.sweep"})
sys.exit(run_command(lambda: run_cell(cell, Path(sys.argv[2]), "plan")))
"""


@pytest.mark.slow
def test_a_signal_is_passed_on_and_the_sweep_ends_after_the_training_has_saved(plan: Path, tmp_path: Path) -> None:
    line = [sys.executable, "-c", STOPPED, str(plan), str(tmp_path)]
    environment = os.environ | {"WMJAX_CACHE": str(tmp_path)}
    process = subprocess.Popen(
        line, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    process.terminate()
    printed, error = process.communicate(timeout=600)
    assert (process.returncode, printed) == (143, "saved\n")
    assert error == "stopped by SIGTERM; run the same command again to resume\n"
    (seconds,) = tmp_path.rglob("sweep_seconds.json")
    assert json.loads(seconds.read_text())["training"] > 1


def test_a_cell_of_other_settings_is_one_line(plan: Path) -> None:
    cells, folder = resolve(read_plan(plan)), results_folder(plan, read_plan(plan))
    fake_result(folder / "short-s0.json", cells[0])
    assert finished(cells, folder) == {"short-s0"}
    plan.write_text(PLAN.replace("train.steps = 20", "train.steps = 21"))
    with pytest.raises(UserError, match=r"short-s0 exists with train\.steps = 20, the plan says 21"):
        finished(resolve(read_plan(plan)), folder)


def test_a_cell_that_ran_through_another_module_is_one_line(plan: Path) -> None:
    cells, folder = resolve(read_plan(plan)), results_folder(plan, read_plan(plan))
    fake_result(folder / "short-s0.json", cells[0])
    changed = dataclasses.replace(cells[0], through=("package.module", "fault"))
    with pytest.raises(UserError, match=r"short-s0 exists with through = None, the plan says \['package\.module'"):
        finished([changed], folder)


def test_settings_without_effect_on_numbers_may_change(plan: Path) -> None:
    cells, folder = resolve(read_plan(plan)), results_folder(plan, read_plan(plan))
    fake_result(folder / "short-s0.json", cells[0])
    plan.write_text(PLAN + "evaluation.workers = 1".join(["\nsettings.", "\n"]))
    assert finished(resolve(read_plan(plan)), folder) == {"short-s0"}


def test_tables_follow_from_the_json_alone(plan: Path) -> None:
    cells, folder = resolve(read_plan(plan)), results_folder(plan, read_plan(plan))
    for cell, successes in zip(cells, (3, 5, 0), strict=True):
        fake_result(folder / f"{cell.name}.json", cell, successes)
    paths = write_tables(folder)
    before = [path.read_bytes() for path in paths]
    for path in paths:
        path.unlink()
    assert [path.read_bytes() for path in write_tables(folder)] == before
    table = before[0].decode()
    assert "| short | 0 | 6/10 | 60.0 % | 31.3 to 83.2 | 3/5 | 3/5 | 1.5 |" in table
    assert "| cell | seed | successes | rate | 95 % interval | libero_spatial/2 | libero_spatial/10 |" in table
    assert "| short | 2 | 80.0 % | 0.0 to 100.0 |" in table and "| long | 1 | 0.0 % |  |" in table
    assert before[1].decode().count("<circle") == 3
    assert [result.episodes for result in read_results(folder)] == [10, 10, 10]


def test_tables_without_finished_cells_are_one_line(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(plan), "--tables"]) == 2
    assert "no finished cell" in capsys.readouterr().err
