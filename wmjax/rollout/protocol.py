"""What an evaluation runs: suite, episodes, step limit, horizon, delay. One small TOML file per protocol."""

import dataclasses
import tomllib
from pathlib import Path
from typing import Any, Literal

from wmjax.errors import UserError, unknown_name
from wmjax.resources import resource_folder
from wmjax.sim.episode import DEMONSTRATION_INDEX, EpisodeId
from wmjax.typed import build

TASKS = {"libero_spatial": 10, "libero_object": 10, "libero_goal": 10, "libero_10": 10, "libero_90": 90}
"""Number of tasks of each LIBERO suite."""
INITIAL_STATES = 50
"""Initial states that the benchmark ships for each task."""


@dataclasses.dataclass(frozen=True)
class Protocol:
    """An evaluation's definition; two runs of one protocol ran the same episodes.

    Attributes:
        name: of the file.
        suite: LIBERO suite.
        tasks: task ids within the suite.
        episodes_per_task: episodes of each task, with indices ``first_index``, ``first_index + 1``, ...
        init: ``benchmark`` starts from the suite's initial states, ``random`` from seeded random placements
            (never one that demonstrations are recorded from).
        max_steps: control steps (20 Hz) after which an episode has failed.
        open_loop_horizon: control steps executed of each action chunk.
        execution_delay: control steps between an observation and the execution of the actions chosen on it;
            the robot holds still for the first ``execution_delay`` steps of an episode.
        seed: of the policy's noise; the episodes themselves do not depend on it.

    """

    name: str
    suite: str
    tasks: tuple[int, ...]
    episodes_per_task: int
    init: Literal["benchmark", "random"]
    max_steps: int
    first_index: int = 0
    open_loop_horizon: int = 8
    execution_delay: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.suite not in TASKS:
            raise unknown_name("suite", self.suite, TASKS)
        for task in self.tasks:
            if not 0 <= task < TASKS[self.suite]:
                raise UserError(f"tasks contains {task}; {self.suite} has tasks 0..{TASKS[self.suite] - 1}")
        if not self.tasks or len(set(self.tasks)) != len(self.tasks):
            raise UserError(f"tasks is {list(self.tasks)}; name at least one task, and each once")
        for field in ("episodes_per_task", "max_steps", "open_loop_horizon"):
            if getattr(self, field) < 1:
                raise UserError(f"{field} is {getattr(self, field)}; it must be at least 1")
        for field in ("first_index", "execution_delay"):
            if getattr(self, field) < 0:
                raise UserError(f"{field} is {getattr(self, field)}; it must not be negative")
        if self.init == "benchmark" and self.first_index + self.episodes_per_task > INITIAL_STATES:
            raise UserError(
                f"episodes_per_task is {self.episodes_per_task} from first_index {self.first_index}, but {self.suite} "
                f"has {INITIAL_STATES} initial states per task; ask for fewer, or use init = 'random'"
            )

        if self.init == "random" and self.first_index + self.episodes_per_task > DEMONSTRATION_INDEX:
            raise UserError(
                f"first_index is {self.first_index} for {self.episodes_per_task} episodes; random placements from "
                f"{DEMONSTRATION_INDEX} on are demonstrations, choose a smaller one"
            )

    def episodes(self) -> list[EpisodeId]:
        """All episodes, task by task."""
        indices = range(self.first_index, self.first_index + self.episodes_per_task)
        return [EpisodeId(self.suite, task, self.init, index) for task in self.tasks for index in indices]


def protocol_names() -> list[str]:
    """Names of the protocols that ship with wmjax."""
    return sorted(path.stem for path in (resource_folder("eval") / "protocols").glob("*.toml"))


def load_protocol(name: str, **changes: Any) -> Protocol:
    """Reads a protocol by name, or from a path ending in ``.toml``.

    Args:
        name: such as ``spatial_dev``.
        changes: fields to replace; None leaves a field as it is.

    Raises:
        UserError: unknown name or key, mistyped or impossible value.

    """
    path = Path(name) if name.endswith(".toml") else resource_folder("eval") / "protocols" / f"{name}.toml"
    if not path.is_file():
        raise unknown_name("protocol", name, protocol_names())
    try:
        values = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {error}; correct the file") from error
    values |= {key: value for key, value in changes.items() if value is not None}
    return from_values({"name": path.stem, **values}, str(path))


def from_values(values: dict[str, Any], where: str) -> Protocol:
    """A protocol from plain values, as :func:`load_protocol` reads and headers store them.

    Raises:
        UserError: unknown, missing or mistyped key; ``where`` is named.

    """
    for field in dataclasses.fields(Protocol):
        if field.name not in values and field.default is dataclasses.MISSING:
            raise UserError(f"{where}: the key {field.name!r} is missing; add it")
    return build(Protocol, values, "protocol.")
