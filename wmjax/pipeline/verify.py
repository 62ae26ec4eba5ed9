"""The implementation of the verify command: it checks the evidence against itself, documents and simulator."""

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from wmjax.core.errors import UserError
from wmjax.core.paths import listed, resource_folder, without_cache
from wmjax.core.specs import ObservationSpec, from_dict
from wmjax.reporting.evidence_blocks import outdated_blocks, write_blocks
from wmjax.rollout.capsule import Capsule, Outcome, Recorded, chosen, outcomes_of, read_capsule
from wmjax.rollout.evaluation_shards import read_actions
from wmjax.rollout.protocol import Protocol, from_values
from wmjax.rollout.results import read_header, read_records, read_summary
from wmjax.sim.episode import EpisodeId

log = logging.getLogger("wmjax.verify")
DOCUMENTS = ("README.md", "docs/results.md")
"""Files of the repository with tables that are made of the evidence."""
SAME_STATE = 1e-6
"""Largest difference of a final state on another processor, whose matrix products differ in the last bits."""


def evidence_folder() -> Path:
    """The folder of the committed capsules."""
    return resource_folder("eval") / "evidence"


def documents_of(root: Path) -> list[Path]:
    """The existing :data:`DOCUMENTS` of the repository that holds the evidence."""
    return [path for name in DOCUMENTS if (path := root.parents[1] / name).is_file()]


def run_verification(*, replays: int | None, write: bool, add: Path | None, name: str | None) -> int:
    """Runs the command's options; returns the exit status, 1 if anything differs.

    Args:
        replays: episodes of each evaluation to replay; None for all that are recorded.
        write: rewrites the generated blocks of the documents instead.
        add: results folder to make evidence of instead.
        name: of that evidence.

    Raises:
        UserError: options that do not go together, or see :func:`verify` and :func:`add_evidence`.

    """
    root = evidence_folder()
    if (add is None) != (not name):
        raise UserError("--add and --name belong together; give both")
    if replays is not None and replays < 0:
        raise UserError(f"--replays is {replays}; give 0 or more")
    if add is not None and name:
        print(add_evidence(root, add, name))
        return 0
    if write:
        print(*rewrite(root, documents_of(root)), sep="\n")
        return 0
    wrong = verify(root, documents_of(root), replays=replays)
    log.info("%s", "; ".join(wrong) or "everything is as recorded")
    return int(bool(wrong))


def read_capsules(root: Path) -> list[Capsule]:
    """All capsules of a folder, by name.

    Raises:
        UserError: there are none, or one is damaged.

    """
    capsules = [read_capsule(path.parent) for path in listed(root, "*/capsule.json")]
    if not capsules:
        raise UserError(f"{root}: no evidence there; run this in the repository")
    return capsules


def verify(root: Path, documents: Sequence[Path], *, replays: int | None = None) -> list[str]:
    """Checks all evidence, and the generated blocks of documents; returns the faults, one line each.

    Args:
        root: folder of the capsules.
        documents: Markdown files.
        replays: episodes of each capsule that are replayed in the simulator; None for all that are recorded.

    Raises:
        UserError: a capsule is damaged, or the simulator is missing.

    """
    capsules = read_capsules(root)
    wrong = [
        f"{path}: the block {name!r} is not what the evidence says; run `python -m wmjax.verify --write`"
        for path, name in outdated_blocks(documents, {capsule.name: capsule for capsule in capsules})
    ]
    for capsule in capsules:
        some = capsule.replays[:replays]
        counts = capsule.counts().values()
        solved = f"{sum(s for s, _ in counts)}/{sum(n for _, n in counts)}"
        log.info("%s: %s solved, %d episodes to replay", capsule.name, solved, len(some))
        wrong += replay(capsule.protocol, _spec(capsule), some)
    return wrong


def rewrite(root: Path, documents: Sequence[Path]) -> list[Path]:
    """Rewrites the generated blocks of documents; returns the documents that changed."""
    return write_blocks(documents, {capsule.name: capsule for capsule in read_capsules(root)})


def add_evidence(root: Path, evaluation: Path, name: str) -> Path:
    """Makes a capsule of a finished evaluation; some of its episodes are replayed here first.

    Args:
        root: folder of the capsules.
        evaluation: results folder.
        name: of the capsule.

    Raises:
        UserError: the evaluation is not finished, its actions are missing, or a replay does not end as recorded.

    """
    header, records = read_header(evaluation), read_records(evaluation)
    protocol = from_values(header["protocol"], f"{evaluation}/header.json")
    outcomes = outcomes_of(records, protocol)
    summary = read_summary(evaluation)
    about = {key: summary[key] for key in ("command", "commit", "finished_at", "simulator") if key in summary}
    about, header = without_cache((about, header))
    by_key = {record.key: record for record in records}
    instructions = {record.task_id: record.instruction for record in records}
    capsule = Capsule(name, about, header, dict(sorted(instructions.items())), outcomes)
    wanted = chosen([outcome.key for outcome in outcomes])
    streams = [
        (outcome, np.array(by_key[outcome.key].settled_state), read_actions(evaluation, outcome.key))
        for outcome in outcomes
        if outcome.key in wanted
    ]
    recorded = []
    for outcome, settled, actions, final, wrong in _played(protocol, _spec(capsule), streams):
        if wrong:
            raise UserError(f"{evaluation}: {wrong}; evaluate again with this version")
        recorded.append(Recorded(outcome, settled, actions, final))
    return dataclasses.replace(capsule, replays=tuple(recorded)).save(root)


def replay(protocol: Protocol, spec: ObservationSpec, episodes: Sequence[Recorded]) -> list[str]:
    """Executes recorded actions from the recorded starts; returns a line for each different ending."""
    wrong, finals = [], {one.outcome.key: one.final for one in episodes}
    streams = [(one.outcome, one.settled, one.actions) for one in episodes]
    for outcome, _, _, final, fault in _played(protocol, spec, streams):
        difference = float(np.abs(final - finals[outcome.key]).max())
        if not fault and difference > SAME_STATE:
            fault = f"episode {outcome.key} ends in a state that differs by {difference:.2g} from the recorded one"
        exact = "bit for bit" if difference == 0.0 else f"within {difference:.1g}"
        log.info("%s: %s", outcome.key, fault or f"as recorded, {exact}")
        wrong += [fault] if fault else []
    return wrong


def _played(
    protocol: Protocol, spec: ObservationSpec, streams: Sequence[tuple[Outcome, Any, Any]]
) -> Iterator[tuple[Outcome, Any, Any, Any, str]]:
    """Plays episodes task by task; yields each with its final state and what is wrong with it, if anything."""

    def task(stream: tuple[Outcome, Any, Any]) -> int:
        return EpisodeId.parse(stream[0].key).task_id

    for task_id, group in groupby(sorted(streams, key=task), task):
        env: Any = protocol.environment(protocol.suite, task_id, spec)
        try:
            for outcome, settled, actions in group:
                yield (outcome, settled, actions, *_play(env, protocol, outcome, settled, actions))
        finally:
            env.close()


def _play(env: Any, protocol: Protocol, outcome: Outcome, settled: Any, actions: Any) -> tuple[Any, str]:
    """The final state of one episode and what is wrong with it; empty if it ended as it should."""
    episode = EpisodeId.parse(outcome.key)
    env.reset(episode)
    start = float(np.abs(env.settled_state - settled).max()) if env.settled_state.shape == settled.shape else np.inf
    if start > SAME_STATE:
        return env.settled_state, f"episode {outcome.key} begins in a state that differs by {start:.2g}"
    env.restore(settled)
    if protocol.disturbance is not None:
        env.disturb(protocol.disturbance, episode)
    successes = [step for step, action in enumerate(actions, 1) if env.step(action)]
    ends = [outcome.steps] if outcome.success else []
    if len(actions) != outcome.steps or successes != ends:
        found = f"success at step {successes[0]}" if successes else f"no success in {len(actions)} steps"
        outcome_text = f"success at step {outcome.steps}" if outcome.success else f"no success in {outcome.steps} steps"
        return env.sim_state(), f"episode {outcome.key} was recorded with {outcome_text}, its replay has {found}"
    return env.sim_state(), ""


def _spec(capsule: Capsule) -> ObservationSpec:
    """How the evaluated policy saw; a replay renders nothing of it."""
    return from_dict(ObservationSpec, capsule.header["observation"], f"the capsule {capsule.name}")
