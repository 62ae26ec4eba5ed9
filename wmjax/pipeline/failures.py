"""The failed episodes of an evaluation, run again with a privileged observer, each with its class."""

import dataclasses
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from wmjax.core.errors import UserError
from wmjax.core.files import write_json
from wmjax.core.paths import enable_compilation_cache
from wmjax.diagnostics.failure_classes import Failure, classify
from wmjax.pipeline import evaluate
from wmjax.policy.policy import load_policy
from wmjax.policy.policy_actor import PolicyActor
from wmjax.policy.saved import find_policy
from wmjax.recording.watch import Watch
from wmjax.rollout.actors import Actor
from wmjax.rollout.protocol import Protocol, from_values
from wmjax.rollout.results import read_header, read_records
from wmjax.sim.episode import EpisodeId

log = logging.getLogger("wmjax.why")


class Watched(NamedTuple):
    """A failed episode that was run again; ``failure`` is None if it succeeded this time."""

    episode: EpisodeId
    failure: Failure | None


def failed_episodes(evaluation: Path, tasks: Sequence[int] = ()) -> tuple[Protocol, list[EpisodeId]]:
    """The protocol of an evaluation and its failed episodes, by task and index.

    Args:
        evaluation: the folder of its results.
        tasks: only these; all when empty.

    Raises:
        UserError: no evaluation of a policy there.

    """
    header = read_header(evaluation)
    if header.get("actor") != "policy":
        raise UserError(f"{evaluation}: {header.get('actor')} acted there; name an evaluation of a policy")
    protocol = from_values(header.get("protocol") or {}, str(evaluation))
    failed = [r for r in read_records(evaluation) if not r.success and (not tasks or r.task_id in tasks)]
    return protocol, sorted(EpisodeId.parse(record.key) for record in failed)


def watch_policy(
    run: Path, protocol: Protocol, episodes: Sequence[EpisodeId], out: Path, *, workers: int = 2
) -> list[Watched]:
    """Runs episodes with a policy and classifies each failure; ``out`` gets ``failures.json``.

    Raises:
        UserError: no checkpoint there, the protocol needs more than the policy alone, or a task has no classes.

    """
    enable_compilation_cache()
    found = find_policy(run)
    if protocol.oracle is not None or protocol.corruption != "none":
        raise UserError("failures are explained for a policy as it is; choose an evaluation without oracle, corruption")
    policy = load_policy(
        found.folder,
        open_loop_horizon=protocol.open_loop_horizon,
        realtime=protocol.realtime,
        execution_delay=protocol.execution_delay,
    )
    watched = watch(PolicyActor(policy, protocol.seed), protocol, episodes, workers=workers)
    content = {
        "checkpoint": {"step": found.step, "hash": found.hash},
        "protocol": dataclasses.asdict(protocol),
        "episodes": {entry.episode.key: _plain(entry.failure) for entry in watched},
    }
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "failures.json", content)
    return watched


def watch(actor: Actor, protocol: Protocol, episodes: Sequence[EpisodeId], *, workers: int = 2) -> list[Watched]:
    """Runs episodes with an actor and classifies each failure, in the order given."""
    failures: dict[EpisodeId, Failure | None] = {}

    def note(episode: EpisodeId, outcome: str, moments: Sequence[Any]) -> None:
        if outcome in ("success", "failure"):
            failures[episode] = classify(moments) if outcome == "failure" else None

    evaluate.watch(actor, protocol, episodes, Watch, note, workers=workers)
    return [Watched(episode, failures[episode]) for episode in episodes if episode in failures]


def text(watched: Sequence[Watched]) -> str:
    """The classes with their counts, then each failed episode with its time line."""
    counts = Counter(str(entry.failure.kind) for entry in watched if entry.failure)
    lines = [f"{count:3d}  {kind}" for kind, count in counts.most_common()]
    for episode, failure in watched:
        if failure is None:
            lines += ["", f"{episode.key}: succeeded this time"]
            continue
        lines += ["", f"{episode.key}: {failure.kind}, {failure.detail}"]
        lines += [f"  {event.step:4d}  {event.text}" for event in failure.events]
    return "\n".join(lines)


def _plain(failure: Failure | None) -> dict[str, Any] | None:
    if failure is None:
        return None
    events = [[event.step, event.text] for event in failure.events]
    return {"class": str(failure.kind), "detail": failure.detail, "events": events}
