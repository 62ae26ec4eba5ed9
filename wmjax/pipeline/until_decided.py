"""A comparison of policies that runs episodes until it has decided, see :mod:`wmjax.analysis.sequential`."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from wmjax.analysis.comparison import finished
from wmjax.analysis.sequential import Look, StoppingRule, look
from wmjax.core.errors import UserError
from wmjax.core.paths import records_folder
from wmjax.pipeline.evaluate import evaluate
from wmjax.pipeline.evaluate_checkpoint import load_actor
from wmjax.policy.saved import find_policy
from wmjax.rollout.actors import Actor
from wmjax.rollout.protocol import Protocol, load_protocol, protocol_folder
from wmjax.rollout.results import read_records
from wmjax.rollout.settings import EvaluateSettings
from wmjax.sim.episode import EpisodeId

log = logging.getLogger("wmjax.compare")


class _Side(NamedTuple):
    """One policy: its actor, its header, and the folder of its results."""

    actor: Actor
    header: dict
    out: Path


def compare_until_decided(
    a: Sequence[Path], b: Sequence[Path], protocol: Protocol, rule: StoppingRule, *, workers: int = 2, per_look: int = 4
) -> Look:
    """Evaluates both systems on the same episodes, some at a time, until the rule decides or no episode is left.

    The results are where ``wmjax.evaluate`` writes them, so that existing episodes are not run again. The
    order of episodes is fixed: all tasks of the first index, then of the next.

    Args:
        a: the baseline's runs or checkpoints, one per training seed.
        b: the other system's, of the same training seeds in the same order.
        protocol: with as many episodes as may be run at most.
        rule: when to stop.
        workers: simulator processes.
        per_look: episodes of each task between two looks.

    Raises:
        UserError: no runs, other training seeds, or see :func:`wmjax.pipeline.evaluate_checkpoint.evaluate_checkpoint`.

    """
    settings = EvaluateSettings(workers=workers, videos=0)
    sides = [[_side(path, protocol, settings) for path in paths] for paths in (a, b)]
    seeds = [[side.header["experiment"]["seed"] for side in system] for system in sides]
    if not a or len(a) != len(b) or (len(a) > 1 and seeds[0] != seeds[1]):
        raise UserError(f"A has the training seeds {seeds[0]}, B {seeds[1]}; give one run per seed in the same order")
    episodes = sorted(protocol.episodes(), key=lambda episode: episode.index)
    step = per_look * len(protocol.tasks)
    for end in range(step, len(episodes) + step, step):
        wanted = episodes[:end]
        for side in (*sides[0], *sides[1]):
            evaluate(side.actor, protocol, side.out, settings, side.header, episodes=wanted, records=records_folder())
        pairs = [_pairs(one.out, other.out, wanted) for one, other in zip(*sides, strict=True)]
        found = look(pairs, rule)
        log.info("%s", found.line())
        if found.verdict != "undecided":
            break
    return found


def _side(path: Path, protocol: Protocol, settings: EvaluateSettings) -> _Side:
    found = find_policy(path)
    actor, header, _ = load_actor(found.folder, protocol, settings)
    return _Side(actor, header, protocol_folder(found.evaluations, protocol, load_protocol(protocol.name)))


def _pairs(a: Path, b: Path, episodes: Sequence[EpisodeId]) -> np.ndarray:
    """The outcomes of the pairs that both finished, in the order of the episodes: +1 only B, -1 only A, 0 otherwise."""
    one, other = ({record.key: record for record in read_records(out) if finished(record)} for out in (a, b))
    keys = [episode.key for episode in episodes if episode.key in one and episode.key in other]
    return np.array([int(other[key].success) - int(one[key].success) for key in keys], int)
