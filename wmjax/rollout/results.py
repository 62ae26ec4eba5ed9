"""The results of an evaluation: ``header.json``, ``episodes.jsonl``, ``actions/``, ``summary.json`` and a table.

``actions/`` holds what each episode executed, a file per episode, so that it can be replayed. ``episodes.jsonl`` is
append-only, with one line per finished episode, flushed as the episode ends; an interrupted evaluation resumes after
its last complete line. ``header.json`` describes what was run; another header is refused.
"""

import dataclasses
import functools
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32

from wmjax.core.errors import UserError
from wmjax.core.files import atomic_path, disk_errors, write_json
from wmjax.core.reading import parse_json, read_json, read_text, typed
from wmjax.rollout.protocol import Protocol

FORMAT_VERSION = 1
Outcome = Literal["success", "failure", "timeout", "crash"]
DESCRIBED = "training."
"""Prefix of the header fields that spell out what ``recipe_hash`` identifies; earlier evaluations lack them."""


@dataclasses.dataclass(frozen=True)
class EpisodeRecord:
    """One line of ``episodes.jsonl``.

    Attributes:
        key: the episode's identity, such as ``libero_spatial/3/random/17``.
        suite, task_id, init, index: its parts.
        instruction: the task's sentence; empty if no attempt ever reset the environment.
        seed: the environment's seed, derived from the identity.
        settled_hash: hash of the full simulator state after settling. It differs between processors, whose matrix
            products differ in the last bits.
        success: whether the task's predicate held within the step limit.
        steps: control steps executed in the last attempt.
        outcome: ``success``; ``failure`` (the step limit, a policy's failure); ``timeout`` (a worker hung) or
            ``crash`` (a worker died or raised) in every attempt, which says nothing about the policy.
        attempts: 1 plus the number of faults.
        faults: kind of each fault.
        seconds: wall time of the last attempt.
        decisions: policy calls in the last attempt.
        info: mean over the decisions of what the policy reports (gate, latent error, ...).
        recipe_hash: of the evaluated recipe, empty for scripted actors.
        open_loop_horizon, execution_delay: control steps.
        settled_state: the full simulator state after settling; empty if no attempt ever reset the environment.
        given_instruction: the sentence that the policy was given; empty likewise.
        given_task: the task of the suite whose sentence that is; None for a neutral one.
        reached: the tasks of the suite whose goals were reached, in the order in which they were, as seen after the
            control steps of each decision; a goal that held at the start is none of them. None if only the task's own
            goal can be judged.

    """

    key: str
    suite: str
    task_id: int
    instruction: str
    init: str
    index: int
    seed: int
    settled_hash: str
    success: bool
    steps: int
    outcome: Outcome
    attempts: int
    faults: tuple[str, ...]
    seconds: float
    decisions: int
    info: dict[str, float]
    recipe_hash: str
    open_loop_horizon: int
    execution_delay: int
    settled_state: tuple[float, ...] = ()
    given_instruction: str = ""
    given_task: int | None = None
    reached: tuple[int, ...] | None = None


class Results:
    """The folder of one evaluation, opened for appending.

    Args:
        folder: created if needed; an earlier evaluation in it is resumed.
        header: JSON values that define the evaluation.

    Raises:
        UserError: the folder holds an evaluation with another header, or a damaged one.

    """

    def __init__(self, folder: Path, header: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self.path = self.folder / "episodes.jsonl"
        self.header: dict[str, Any] = json.loads(json.dumps({"format_version": FORMAT_VERSION, **header}))
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            _drop_torn_line(self.path)
            self.records = read_records(self.folder)
            if self.records:
                require_same_header(read_header(self.folder), self.header, self.folder)
            else:
                write_json(self.folder / "header.json", self.header)

    def add(self, record: EpisodeRecord) -> None:
        """Appends a finished episode; it is on disk when this returns."""
        with disk_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(_line(record))
            file.flush()
            os.fsync(file.fileno())
        self.records.append(record)

    def save_actions(self, key: str, actions: Float32[np.ndarray, "steps action"]) -> None:
        """Writes an episode's executed actions; call it before :meth:`add`, so that no finished episode lacks them."""
        path = actions_path(self.folder, key)
        path.parent.mkdir(exist_ok=True)
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.save(file, actions)

    def replace(self, records: Iterable[EpisodeRecord]) -> None:
        """Rewrites the whole file atomically with these episodes."""
        self.records = list(records)
        with atomic_path(self.path) as temporary:
            temporary.write_text("".join(map(_line, self.records)), encoding="utf-8")

    @property
    def finished(self) -> set[str]:
        """Keys of the episodes that need not be run again."""
        return {record.key for record in self.records}


@dataclasses.dataclass(frozen=True)
class _Protocol:
    """The fields of a protocol that reports and comparisons read."""

    name: str = ""
    suite: str = ""
    tasks: list[int] | None = None
    episodes_per_task: int | None = None
    init: str = ""
    max_steps: int | None = None
    execution_delay: int | None = None
    oracle: float | None = None
    corruption: str = ""
    sentence: str = ""
    env: str = ""


@dataclasses.dataclass(frozen=True)
class _Policy:
    recipe: str = ""
    seed: int | None = None


@dataclasses.dataclass(frozen=True)
class _Checkpoint:
    step: int | None = None
    hash: str = ""


@dataclasses.dataclass(frozen=True)
class _Training:
    suite: str = ""
    tasks: list[int] | None = None


@dataclasses.dataclass(frozen=True)
class _Timing:
    trained_delay: int | None = None
    actions_end: int | None = None
    memory_ends: int | None = None


@dataclasses.dataclass(frozen=True)
class _Observation:
    simulator: str = ""


@dataclasses.dataclass(frozen=True)
class _Action:
    names: list[str] | None = None


@dataclasses.dataclass(frozen=True)
class _Header:
    """The header fields that are read again, with their types; other fields are allowed."""

    format_version: int
    actor: str = ""
    recipe_hash: str = ""
    protocol: _Protocol | None = None
    experiment: _Policy | None = None
    checkpoint: _Checkpoint | None = None
    training: _Training | None = None
    timing: _Timing | None = None
    observation: _Observation | None = None
    action: _Action | None = None


def read_header(folder: Path) -> dict[str, Any]:
    """The header of an evaluation.

    Raises:
        UserError: there is none, or it is damaged.

    """
    path = Path(folder) / "header.json"
    if not path.exists():
        raise UserError(f"{folder}: no evaluation there (header.json is missing); name an evaluation's folder")
    fix = "delete the folder and evaluate again"
    header = read_json(path, dict[str, Any], fix)
    if header.get("format_version") != FORMAT_VERSION:
        raise UserError(f"{path}: format_version is not {FORMAT_VERSION}; evaluate again into another folder")
    typed(header, _Header, str(path), fix)
    return header


@dataclasses.dataclass(frozen=True)
class _Finished:
    """The fields of ``summary.json`` that reports and shards use."""

    overall: dict[str, Any] = dataclasses.field(default_factory=dict)
    seconds: float | None = None
    control_steps_per_second: float | None = None
    batch_fill: float | None = None


def read_summary(folder: Path) -> dict[str, Any]:
    """An evaluation's ``summary.json``; empty if there is none, as before its end.

    Raises:
        UserError: damaged, or with values of another type.

    """
    path = Path(folder) / "summary.json"
    fix = "delete it and repeat the evaluation's command, which writes it again"
    found = read_json(path, dict[str, Any], fix) if path.exists() else {}
    typed(found, _Finished, str(path), fix)
    return found


def actions_path(folder: Path, key: str) -> Path:
    """The file of an episode's executed actions."""
    return folder / "actions" / f"{key.replace('/', '-')}.npy"


def actor_label(header: Mapping[str, Any]) -> str:
    """The name of the actor: the recipe of a policy, or the name of a scripted actor."""
    experiment = header.get("experiment")
    if isinstance(experiment, Mapping):
        return str(experiment.get("recipe", "policy"))
    return str(header.get("actor", "unknown actor"))


def read_records(folder: Path, *, torn: bool = False) -> list[EpisodeRecord]:
    """The finished episodes of an evaluation, in the order they ended.

    Args:
        folder: of the evaluation.
        torn: whether the last line may be half written, as another process's may be; it is then left out.

    Raises:
        UserError: a damaged line, or an episode twice.

    """
    path = Path(folder) / "episodes.jsonl"
    records: list[EpisodeRecord] = []
    keys: set[str] = set()
    text = read_text(path, "delete it and evaluate again") if path.exists() else ""
    whole = text[: text.rfind("\n") + 1] if torn else text
    for number, line in enumerate(whole.removesuffix("\n").split("\n") if whole else [], 1):
        record = parse_json(line, EpisodeRecord, f"{path}:{number}: damaged line", "delete it and evaluate again")
        if record.key in keys:
            raise UserError(f"{path}:{number}: episode {record.key} occurs twice; delete one of the lines")
        keys.add(record.key)
        records.append(record)
    return records


def require_same_header(old: Mapping[str, Any], new: Mapping[str, Any], folder: Path) -> None:
    """Refuses to mix two evaluations in one folder.

    Raises:
        UserError: names the first differing field and both values.

    """
    for name, (before, now) in differences(old, new).items():
        if not name.startswith(DESCRIBED):
            raise UserError(
                f"{folder}: holds an evaluation with {name} = {before!r}, this one has {now!r}; give another --out, or "
                "delete the folder"
            )


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Header fields that differ, with both values. Fields that only one header describes do not count as different."""
    left, right = ({**protocol_defaults(), **dict(flatten(header))} for header in (a, b))
    names = {*left, *right}
    for side in (left, right):
        if not any(name.startswith(DESCRIBED) for name in side):
            names = {name for name in names if not name.startswith(DESCRIBED)}
    return {name: (left.get(name), right.get(name)) for name in sorted(names) if left.get(name) != right.get(name)}


@functools.cache
def protocol_defaults() -> Mapping[str, Any]:
    """Header fields that the committed evidence and records may lack, with the value that those evaluations used."""
    fields = (field for field in dataclasses.fields(Protocol) if field.default is not dataclasses.MISSING)
    return {f"protocol.{field.name}": field.default for field in fields}


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Nested mappings as pairs of dotted names and values."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _line(record: EpisodeRecord) -> str:
    return json.dumps(dataclasses.asdict(record), allow_nan=False) + "\n"


def _drop_torn_line(path: Path) -> None:
    """Removes an incomplete last line, which a process that was killed while writing leaves behind."""
    if path.exists():
        whole = path.read_bytes().rfind(b"\n") + 1
        os.truncate(path, whole)
