"""The closed-loop evaluation of an actor without a network: recorded actions, the expert, no motion, random actions."""

import dataclasses
import logging
from pathlib import Path

import numpy as np

from wmjax.analysis.summary import Summary
from wmjax.core.errors import UserError
from wmjax.core.location import Location
from wmjax.data.statistics import action_spec
from wmjax.data.store import TrainingStore
from wmjax.pipeline.evaluate import evaluate
from wmjax.rollout import actors
from wmjax.rollout.protocol import Protocol
from wmjax.rollout.settings import EvaluateSettings

log = logging.getLogger("wmjax.evaluate")
SCRIPTED = ("replay", "expert", "noop", "random")
"""Actors without a network."""


def evaluate_scripted(
    name: str,
    protocol: Protocol,
    out: Path,
    settings: EvaluateSettings,
    *,
    data: Location | None = None,
) -> Summary:
    """Evaluates one of the :data:`SCRIPTED` actors; ``replay`` executes the recordings of the training store ``data``.

    They have no batches, whatever the settings say.

    Raises:
        UserError: ``replay`` without ``data``, or see :func:`wmjax.pipeline.evaluate.evaluate`.

    """
    settings = dataclasses.replace(settings, batch=1)
    if name != "replay":
        observation_spec = protocol.environment.observation_spec
        scripted = (
            actors.Expert(observation_spec),
            actors.Noop(observation_spec),
            actors.Random(observation_spec, protocol.seed),
        )
        chosen = next(actor for actor in scripted if actor.name == name)
        return evaluate(chosen, protocol, out, settings)
    if data is None:
        raise UserError("--data is missing; --policy replay needs the training store to replay")
    store = TrainingStore(data)
    spec = action_spec(store, np.arange(len(store.episodes)), protocol.open_loop_horizon, "mean_std")  # as in training
    actor = actors.Replay(store, spec, watch=True)
    episodes = actor.choose(protocol.suite, protocol.tasks, protocol.episodes_per_task)
    protocol = actor.as_recorded(protocol, episodes)
    header = {"store": store.hash}
    return evaluate(actor, protocol, out, settings, header, episodes=episodes)


def replay_status(summary: Summary) -> int:
    """The exit status of a replay: 1, with a logged error, if too few replays succeeded."""
    if summary.overall.rate >= actors.REPLAYS_SUCCEED:
        return 0
    log.error("fewer than %.0f %% of the replays succeed: the path is broken", 100 * actors.REPLAYS_SUCCEED)
    return 1
