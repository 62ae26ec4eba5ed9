"""Evidence capsules: the outcomes of an evaluation in a committed file, and some of its episodes to replay.

    capsule.json   where it comes from, every episode's outcome, and the hashes of both files
    replays.npz    of the replayed episodes: where they begin, what was executed, and the state that it led to

Anyone with the simulator can replay the episodes. On the same kind of processor they end in the same bits.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

from wmjax.core.errors import UserError
from wmjax.core.files import hash_bytes, hash_file, hash_json, read_npz, write_json, write_npz
from wmjax.core.reading import read_json
from wmjax.rollout.protocol import Protocol, from_values
from wmjax.rollout.results import EpisodeRecord
from wmjax.sim.episode import EpisodeId

FORMAT_VERSION = 1
REPLAYED = 20
"""Episodes of an evaluation that are replayed."""
FIX = "restore the file from the repository"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How an episode ended.

    Attributes:
        key: its identity.
        success: whether the goal was reached within the step limit.
        steps: control steps.

    """

    key: str
    success: bool
    steps: int


@dataclasses.dataclass(frozen=True)
class Recorded:
    """An episode to replay.

    Attributes:
        outcome: how it ended.
        settled: the full simulator state at its start.
        actions: what was executed.
        final: the full simulator state that this led to.

    """

    outcome: Outcome
    settled: Float64[np.ndarray, " sim"]
    actions: Float32[np.ndarray, "steps action"]
    final: Float64[np.ndarray, " values"]


@dataclasses.dataclass(frozen=True)
class _Saved:
    format_version: int
    name: str
    about: dict[str, Any]
    header: dict[str, Any]
    instructions: dict[str, str]
    episodes: list[Outcome]
    replayed: list[str]
    replays_hash: str
    hash: str


@dataclasses.dataclass(frozen=True)
class Capsule:
    """The evidence of one evaluation.

    Attributes:
        name: of its folder.
        about: command, commit, time and simulator.
        header: what was evaluated, as in the evaluation's ``header.json``.
        instructions: of each task.
        outcomes: of all episodes, in the protocol's order.
        replays: the episodes to replay; none of evaluations that kept no actions.

    """

    name: str
    about: Mapping[str, Any]
    header: Mapping[str, Any]
    instructions: Mapping[int, str]
    outcomes: tuple[Outcome, ...]
    replays: tuple[Recorded, ...] = ()

    @property
    def protocol(self) -> Protocol:
        """The protocol that was evaluated."""
        return from_values(dict(self.header["protocol"]), f"the capsule {self.name}")

    @property
    def seed(self) -> int | None:
        """The training seed; None for an actor that was not trained."""
        experiment = self.header.get("experiment") or {}
        return experiment.get("seed")

    def counts(self) -> dict[int, tuple[int, int]]:
        """Successes and episodes of each task, in order."""
        found: dict[int, tuple[int, int]] = {}
        for outcome in self.outcomes:
            task = EpisodeId.parse(outcome.key).task_id
            successes, episodes = found.get(task, (0, 0))
            found[task] = successes + outcome.success, episodes + 1
        return dict(sorted(found.items()))

    def save(self, root: Path) -> Path:
        """Writes the capsule's folder below ``root`` and returns it.

        Raises:
            UserError: there is a capsule of this name.

        """
        folder = root / self.name
        if folder.exists():
            raise UserError(f"{folder} exists already; evidence is not replaced, choose another name")
        folder.mkdir(parents=True)
        arrays: dict[str, np.ndarray] = {}
        for index, one in enumerate(self.replays):
            arrays |= {f"settled_{index}": one.settled, f"actions_{index}": one.actions, f"final_{index}": one.final}
        write_npz(folder / "replays.npz", arrays, compressed=True)
        values = {
            "format_version": FORMAT_VERSION,
            "name": self.name,
            "about": dict(self.about),
            "header": dict(self.header),
            "instructions": {str(task): text for task, text in self.instructions.items()},
            "episodes": [dataclasses.asdict(outcome) for outcome in self.outcomes],
            "replayed": [one.outcome.key for one in self.replays],
            "replays_hash": hash_file(folder / "replays.npz"),
        }
        write_json(folder / "capsule.json", {**values, "hash": hash_json(values)})
        return folder


def read_capsule(folder: Path) -> Capsule:
    """Reads a capsule and checks every byte of it.

    Raises:
        UserError: names the file that is missing, damaged or changed.

    """
    path = folder / "capsule.json"
    values = read_json(path, dict[str, Any], FIX)
    saved: _Saved = read_json(path, _Saved, FIX)
    if saved.format_version != FORMAT_VERSION:
        raise UserError(f"{path}: format_version is {saved.format_version}, this version reads {FORMAT_VERSION}; {FIX}")
    if hash_json({name: value for name, value in values.items() if name != "hash"}) != saved.hash:
        raise UserError(f"{path}: its content is not what was written, its hash differs; {FIX}")
    if saved.name != folder.name:
        raise UserError(f"{path}: name is {saved.name!r}, the folder is {folder.name!r}; {FIX}")
    replays = folder / "replays.npz"
    if not replays.is_file() or hash_file(replays) != saved.replays_hash:
        raise UserError(f"{replays}: missing, or its hash differs from that in capsule.json; {FIX}")
    arrays, by_key = read_npz(replays), {outcome.key: outcome for outcome in saved.episodes}
    recorded = tuple(
        Recorded(by_key[key], *(arrays[f"{part}_{index}"] for part in ("settled", "actions", "final")))
        for index, key in enumerate(saved.replayed)
    )
    instructions = {int(task): text for task, text in saved.instructions.items()}
    return Capsule(saved.name, saved.about, saved.header, instructions, tuple(saved.episodes), recorded)


def outcomes_of(records: Iterable[EpisodeRecord], protocol: Protocol) -> tuple[Outcome, ...]:
    """The outcomes of a finished evaluation, in the protocol's order.

    Raises:
        UserError: an episode is missing, or could not be run.

    """
    found = {record.key: record for record in records}
    for episode in protocol.episodes():
        if (record := found.get(episode.key)) is None or record.outcome not in ("success", "failure"):
            what = "missing" if record is None else f"a {record.outcome}"
            raise UserError(
                f"episode {episode.key} is {what}; repeat the evaluation's command, which runs what is left"
            )
    records = (found[episode.key] for episode in protocol.episodes())
    return tuple(Outcome(record.key, record.success, record.steps) for record in records)


def chosen(keys: Sequence[str], count: int = REPLAYED) -> list[str]:
    """The episodes to replay: those with the smallest SHA-256 of their key, so that they are not hand-picked."""
    return sorted(keys, key=lambda key: hash_bytes(key.encode()))[:count]
