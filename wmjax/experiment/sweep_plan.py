"""The plan of a sweep: a TOML file that names trainings and their evaluations, cell by cell.

.. code-block:: toml

    settings.train.steps = 3000          # of all cells

    [cells.e0_flow]
    config = "e0_flow"
    seeds = [0, 1, 2]
    minutes = 40                         # stated for each seed
    protocols = ["spatial_dev"]
    episodes = 20                        # per task
    settings.data.tasks = [0, 1]

A cell with one seed is one training with its evaluations, and one JSON file once it is finished.
"""

import dataclasses
import json
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any

from wmjax.core.errors import UserError
from wmjax.core.reading import read_json, read_toml
from wmjax.core.settings import Count, Range, Seed, Settings, build, dotted, merge, quoted
from wmjax.experiment.checks import given_store, require_consistent
from wmjax.experiment.config import Experiment, load, to_dict
from wmjax.experiment.dimensions import of_store
from wmjax.experiment.plan import first_difference
from wmjax.rollout.protocol import Protocol


@dataclasses.dataclass(frozen=True)
class CellSettings(Settings, section="cells"):
    """One cell of a plan, for all of its seeds.

    Attributes:
        config: the recipe.
        minutes: how long one seed is expected to take, training and evaluations.
        scale, dataset: as the train command has them.
        seeds: one training for each.
        protocols: the evaluations after the training.
        episodes: of each task, if not the protocol's number.
        settings: nested settings of the training.

    """

    config: str
    minutes: Annotated[float, Range(0, 1_000_000, above=True)]
    scale: str = "mini"
    dataset: str | None = None
    seeds: tuple[Seed, ...] = (0,)
    protocols: tuple[str, ...] = ("spatial_dev",)
    episodes: Count | None = None
    settings: dict[str, Any] = field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Plan(Settings, section="plan"):
    """A plan as its file defines it.

    Attributes:
        cells: by name.
        results: folder of the JSON files, relative to the plan; beside the plan, with its name, when empty.
        settings: nested settings of every cell, below the cell's own.

    """

    cells: dict[str, CellSettings]
    results: str = ""
    settings: dict[str, Any] = field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Cell:
    """One training and its evaluations.

    Attributes:
        name: of the cell and its seed; the JSON file's name.
        cell: the cell's name.
        seed: of the training.
        minutes: how long it is expected to take.
        arguments: of the train command.
        experiment: all settings.
        protocols: the evaluations, in order.
        through: a module and its arguments that run the commands given after them, instead of the commands alone: an
            experiment that changes more than settings (``benchmarks/ladder.py``). Empty for a plan's cells.

    """

    name: str
    cell: str
    seed: int
    minutes: float
    arguments: tuple[str, ...]
    experiment: Experiment
    protocols: tuple[Protocol, ...]
    through: tuple[str, ...] = ()

    @property
    def identity(self) -> dict[str, Any]:
        """What a finished cell must agree with, as JSON values."""
        protocols = {protocol.name: dataclasses.asdict(protocol) for protocol in self.protocols}
        through = {"through": self.through} if self.through else {}
        return json.loads(json.dumps({"experiment": to_dict(self.experiment), "protocols": protocols, **through}))


def read_plan(path: Path) -> Plan:
    """Reads a plan.

    Raises:
        UserError: no such file, an unknown key, a wrong type, no cells.

    """
    try:
        plan = build(Plan, read_toml(path, dict[str, Any], "correct the plan"))
    except UserError as error:
        raise UserError(str(error) if str(path) in str(error) else f"{path}: {error}; correct the plan") from error
    if not plan.cells:
        raise UserError(f"{path}: cells is empty; name at least one, as in [cells.e2_flow]")
    return plan


def results_folder(path: Path, plan: Plan) -> Path:
    """The folder of a plan's finished cells."""
    return path.parent / (plan.results or path.stem)


def resolve(plan: Plan) -> list[Cell]:
    """Every cell with every seed, in the plan's order, checked as the train command would check it.

    Raises:
        UserError: an unknown recipe, setting or protocol, settings that contradict each other.

    """
    for name, cell in plan.cells.items():
        if len(set(cell.seeds)) != len(cell.seeds) or not cell.seeds:
            raise UserError(f"cells.{name}: seeds is {list(cell.seeds)}; name at least one, and each once")
    return [_cell(plan, name, cell, seed) for name, cell in plan.cells.items() for seed in cell.seeds]


def _cell(plan: Plan, name: str, cell: CellSettings, seed: int) -> Cell:
    values = merge(plan.settings, cell.settings)
    try:
        for key in {"seed", "seeds"} & values.get("train", {}).keys():
            raise UserError(f"settings.train.{key} is set; name the seeds in seeds")
        experiment = load(cell.config, cell.scale, cell.dataset, merge(values, {"train": {"seed": seed}}))
        protocols = tuple(_protocol(experiment, protocol, cell.episodes) for protocol in cell.protocols)
    except UserError as error:
        raise UserError(f"cells.{name}: {error}") from error
    words = ["--config", cell.config, "--scale", cell.scale, "--train.seed", str(seed)]
    words += [] if cell.dataset is None else ["--dataset", cell.dataset]
    for key, value in dotted(values).items():
        words += [f"--{key}", json.dumps(value)]
    return Cell(f"{name}-s{seed}", name, seed, cell.minutes, tuple(words), experiment, protocols)


def _protocol(experiment: Experiment, name: str, episodes: int | None) -> Protocol:
    """The protocol of one evaluation, on the tasks that are trained on; refuses what does not fit the training."""
    store = given_store(experiment, needed=False)
    settings = dataclasses.replace(experiment.evaluation, protocol=name, episodes_per_task=episodes)
    judged = dataclasses.replace(of_store(experiment, store), evaluation=settings)
    evaluation = require_consistent(judged, store)
    assert evaluation is not None
    return evaluation.protocol


def finished(cells: list[Cell], folder: Path) -> set[str]:
    """The names of the cells whose JSON file exists.

    Raises:
        UserError: a cell that exists with other settings than the plan's; names the first that differs.

    """
    there = {cell.name for cell in cells if (folder / f"{cell.name}.json").is_file()}
    for cell in cells:
        if cell.name in there:
            _require_same(cell, folder / f"{cell.name}.json")
    return there


def _require_same(cell: Cell, path: Path) -> None:
    found, wanted = read_json(path, dict[str, Any], "delete it, and the cell is run again"), cell.identity
    changed = first_difference(found.get("experiment", {}), wanted["experiment"])
    if changed is None and found.get("protocols") != wanted["protocols"]:
        old, new = dotted(found.get("protocols", {})), dotted(wanted["protocols"])
        key = next(key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key))
        changed = f"protocols.{key}", old.get(key), new.get(key)
    if changed is None and found.get("through") != wanted.get("through"):
        changed = "through", found.get("through"), wanted.get("through")
    if changed is not None:
        key, before, now = changed
        raise UserError(
            f"{path}: cell {cell.name} exists with {key} = {quoted(before)}, the plan says {quoted(now)}; rename the "
            "cell, or move the file away"
        )
