"""Protocols: suite, episodes, step limit and difficulties of an evaluation, one small TOML file each."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from wmjax.core.errors import UserError, unknown_name
from wmjax.core.handover import Realtime, require_delay
from wmjax.core.options import Short, number_list
from wmjax.core.paths import expand, listed, resource_folder
from wmjax.core.reading import read_toml
from wmjax.core.settings import Corruption, Count, Depth, Fraction, Layer, Range, Seed, Settings, build, with_origin
from wmjax.sim.disturbance import MAX_VELOCITY, Disturbance
from wmjax.sim.environment import ENVIRONMENTS, Environment
from wmjax.sim.episode import DEMONSTRATION_INDEX, EpisodeId
from wmjax.sim.sentence import Sentence


@dataclasses.dataclass(frozen=True)
class Protocol(Settings, section="protocol"):
    """The definition of an evaluation. Two evaluations with the same protocol run the same episodes.

    Attributes:
        name: of the file.
        suite: a suite of the environment, such as ``libero_spatial``.
        tasks: task ids within the suite.
        episodes_per_task: episodes of each task, with indices ``first_index``, ``first_index + 1``, ...
        init: ``benchmark`` starts from the suite's initial states, ``random`` from seeded random placements
            (never one that demonstrations are recorded from).
        max_steps: control steps after which an episode has failed.
        open_loop_horizon: control steps executed of each action chunk.
        execution_delay: control steps between an observation and the execution of the actions chosen on it;
            the robot holds still for the first ``execution_delay`` steps of an episode.
        realtime: what the policy does about the actions that are still executed during that delay: nothing (``none``),
            real-time chunking (``rtc``), or a mean of the old and the new chunk (``blend``), see
            :mod:`wmjax.core.handover`. Other than with ``none``, a chunk's actions are executed at the steps that they
            were learned for.
        ensemble: 0, or the decay (per control step of age) of the weights ``exp(-ensemble * age)`` with which all
            chunks' predictions of a control step are averaged, see :mod:`wmjax.rollout.execution`.
        target_velocity: speed (m/s) at which the goal's target drifts over the table, in a direction drawn from the
            episode's identity, see :class:`wmjax.sim.disturbance.Drift`.
        camera_dropout: probability that a camera's frames are black for a policy at a decision, drawn for each
            episode, decision and camera; one camera always shows, see :mod:`wmjax.rollout.execution`.
        oracle: None, or α of the oracle bracket: at every decision the policy's memory is α·ẑ + (1-α)·z₊, where ẑ is
            its own prediction and z₊ the encoded future in which the scripted expert takes over (after the actions
            that ``execution_delay`` still lets pass). 1 is the policy itself, 0 is a perfect prediction.
        corruption: what replaces the world memory that the policy's action tokens read: zeros (``zero``), unit noise
            drawn for each decision (``noise``), or the memory of a demonstration at the same control step. The
            demonstration is drawn for each episode, from any task (``shuffled``, see
            :mod:`wmjax.policy.interventions`) or from the episode's task (``shuffled_in_task``). With ``closed`` they
            read no memory. The Prophet's own predictions are still logged and drawn.
        sentence: the policy's instruction: the task's own sentence (``own``), one that names no task (``neutral``, a
            deaf policy), or that of another task of the suite, drawn from the episode's identity (``other``), see
            :mod:`wmjax.sim.sentence`. Success remains the goal of the episode's task.
        seed: of the policy's noise; the episodes themselves do not depend on it.
        env: the environment: a name of :data:`wmjax.sim.environment.ENVIRONMENTS`, or ``package.module:Class``.

    """

    name: str
    suite: str
    tasks: tuple[int, ...]
    episodes_per_task: Count
    init: Literal["benchmark", "random"]
    max_steps: Annotated[int, Range(1, 1_000_000)]
    first_index: Annotated[int, Range(0, 1_000_000_000)] = 0
    open_loop_horizon: Depth = 8
    execution_delay: Annotated[int, Range(0, 10_000)] = 0
    realtime: Realtime = "none"
    ensemble: Annotated[float, Range(-100, 100)] = 0.0
    target_velocity: Annotated[float, Range(0, MAX_VELOCITY)] = 0.0
    camera_dropout: Fraction = 0.0
    oracle: Fraction | None = None
    corruption: Corruption = "none"
    sentence: Sentence = "own"
    seed: Seed = 0
    env: str = "libero"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_tasks()
        self._check_memory()
        self._check_realtime()
        self._check_episodes()

    def _check_tasks(self) -> None:
        suites = self.environment.suites
        if self.suite not in suites:
            raise unknown_name("suite", self.suite, suites)
        for task in self.tasks:
            if not 0 <= task < suites[self.suite]:
                raise UserError(f"tasks contains {task}; {self.suite} has tasks 0..{suites[self.suite] - 1}")
        if not self.tasks or len(set(self.tasks)) != len(self.tasks):
            raise UserError(f"tasks is {list(self.tasks)}; name at least one task, and each once")

    def _check_memory(self) -> None:
        if self.oracle is not None and self.corruption != "none":
            raise UserError(f"corruption is {self.corruption!r} with oracle {self.oracle}; leave one of them out")

    def _check_realtime(self) -> None:
        require_delay(self.realtime, self.execution_delay)
        if self.realtime != "none" and self.ensemble:
            raise UserError(
                f"realtime is {self.realtime!r} with ensemble {self.ensemble:g}, which changes actions that a chunk is "
                "made to continue; leave one of them out"
            )

    def _check_episodes(self) -> None:
        end = self.first_index + self.episodes_per_task
        states = self.environment.initial_states
        if self.init == "benchmark" and end > states:
            raise UserError(
                f"episodes_per_task is {self.episodes_per_task} from first_index {self.first_index}, but {self.suite} "
                f"has {states} initial states per task; ask for fewer, or use init = 'random'"
            )
        if self.init == "random" and end > DEMONSTRATION_INDEX:
            raise UserError(
                f"first_index is {self.first_index} for {self.episodes_per_task} episodes; random placements from "
                f"{DEMONSTRATION_INDEX} on are demonstrations, choose a smaller one"
            )

    @property
    def environment(self) -> type[Environment]:
        """The class that ``env`` names.

        Raises:
            UserError: there is none.

        """
        return ENVIRONMENTS.resolve(self.env)

    @property
    def disturbance(self) -> Disturbance | None:
        """The disturbance of every episode; None for none."""
        return Disturbance(self.target_velocity) if self.target_velocity else None

    def episodes(self) -> list[EpisodeId]:
        """All episodes, task by task."""
        indices = range(self.first_index, self.first_index + self.episodes_per_task)
        return [EpisodeId(self.suite, task, self.init, index) for task in self.tasks for index in indices]


def protocol_names() -> list[str]:
    """Names of the protocols that ship with wmjax, and of the lists of them."""
    return [path.stem for path in listed(resource_folder("eval") / "protocols", "*.toml")]


LIST_KEY = "protocols"
"""The one key of a file that lists protocols, see :mod:`wmjax.rollout.protocol_list`."""


def read_protocol(name: str) -> tuple[Path, dict[str, Any]]:
    """The path and the plain values of a protocol's file, or of a list's, by name or from a path ending in ``.toml``.

    Raises:
        UserError: the file is missing, or is not TOML.

    """
    path = expand(name) if name.endswith(".toml") else resource_folder("eval") / "protocols" / f"{name}.toml"
    if not path.is_file():
        raise unknown_name("protocol", name, protocol_names())
    return path, read_toml(path, dict[str, Any], "correct the file")


def load_protocol(name: str, origins: Mapping[str, str] | None = None, /, **changes: Any) -> Protocol:
    """Reads a protocol by name, or from a path ending in ``.toml``.

    Args:
        name: such as ``spatial_dev``.
        origins: what a change is called where it was given, if not as on the command line.
        changes: fields to replace; None leaves a field as it is.

    Raises:
        UserError: unknown name or key, mistyped or impossible value, or a list of protocols.

    """
    path, values = read_protocol(name)
    if LIST_KEY in values:
        raise UserError(
            f"protocol {name!r} is a list of protocols, which only `python -m wmjax.evaluate` runs; name one protocol"
        )
    given = {key: value for key, value in changes.items() if value is not None}
    called = {short.setting: f"--{name}" for name, short in CHANGES.items()} | dict(origins or {})
    called = {key: called.get(key, f"--protocol.{key}") for key in given}
    also = f", or what replaces a part of it: {', '.join(called.values())}" if given else ""
    try:
        return build(Protocol, {"name": path.stem, **values, **given}, "protocol.")
    except UserError as error:
        layers = [Layer({key: value}, f"give another {called[key]}") for key, value in given.items()]
        named = with_origin(error, layers)
        raise named if named is not error else UserError(f"{path}: {error}; correct the file{also}") from error


def from_values(values: dict[str, Any], where: str) -> Protocol:
    """A protocol from the plain values that an evaluation's header stores.

    Raises:
        UserError: unknown, missing or mistyped key; ``where`` is named.

    """
    try:
        return build(Protocol, values, "protocol.")
    except UserError as error:
        raise UserError(f"{where}: {error}; evaluate again") from error


CHANGES: dict[str, Short] = {
    "suite": Short("suite", "suite, such as libero_object"),
    "tasks": Short("tasks", "task ids, such as 0,1", number_list),
    "episodes": Short("episodes_per_task", "episodes per task"),
    "init": Short("init", "starts: benchmark or random"),
    "first-index": Short("first_index", "index of the first episode of each task"),
    "horizon": Short("open_loop_horizon", "open-loop horizon, control steps"),
    "delay": Short("execution_delay", "execution delay, control steps"),
    "realtime": Short("realtime", f"how a chunk continues the last one under a delay: {', '.join(get_args(Realtime))}"),
    "ensemble": Short("ensemble", "decay per control step of the weights of overlapping chunks, such as 0.01"),
    "target-velocity": Short("target_velocity", "speed at which the goal's target drifts, m/s, such as 0.04"),
    "camera-dropout": Short("camera_dropout", "probability that a camera is black at a decision, such as 0.5"),
    "oracle": Short("oracle", "share of the prediction in the memory, 0..1; the rest is the true future"),
    "corruption": Short("corruption", f"what replaces the world memory: {', '.join(get_args(Corruption))}"),
    "sentence": Short("sentence", f"the policy's instruction: {', '.join(get_args(Sentence))}"),
    "max-steps": Short("max_steps", "step limit, control steps"),
    "seed": Short("seed", "seed of the policy's noise"),
    "env": Short("env", "environment: libero, or package.module:Class"),
}
"""The fields of a protocol that have a short option, by option. A test keeps them complete."""


def protocol_folder(root: Path, protocol: Protocol, unchanged: Protocol) -> Path:
    """A folder named after the protocol and the fields that differ from its file; no two protocols share one."""
    return root / "-".join([protocol.name, *changed_parts(protocol, unchanged)])


def changed_parts(protocol: Protocol, unchanged: Protocol) -> list[str]:
    """The parts of a folder's name, one for each field that differs from the protocol's file: ``n2``, ``delay8``."""
    parts = []
    for name, change in CHANGES.items():
        value = getattr(protocol, change.setting)
        if value != getattr(unchanged, change.setting):
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value).replace(":", ".")
            parts.append(f"{'n' if name == 'episodes' else name.replace('-', '_')}{text}")
    return parts
