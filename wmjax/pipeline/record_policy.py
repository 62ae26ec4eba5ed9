"""DAgger: a policy acts in the simulator, and the scripted expert labels every state that it reaches.

The command that records demonstrations imports this module, so jax is imported on use only.
"""

import dataclasses
import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wmjax.core.errors import UserError
from wmjax.core.paths import enable_compilation_cache
from wmjax.core.specs import ObservationSpec, require_equal, require_same_actions
from wmjax.data.store import TrainingStore
from wmjax.pipeline import evaluate
from wmjax.recording.aggregation import Aggregation
from wmjax.recording.demonstration import DemonstrationConfig
from wmjax.recording.labeller import Labeller
from wmjax.rollout.protocol import Protocol, load_protocol
from wmjax.sim.episode import EpisodeId
from wmjax.sim.libero import ACTION_SPEC, require_simulator

if TYPE_CHECKING:
    from wmjax.policy.policy import Policy
    from wmjax.policy.saved import SavedPolicy

log = logging.getLogger("wmjax.recording")


def record_policy(
    out: Path,
    suite: str,
    tasks: Sequence[int],
    episodes_per_task: int,
    spec: ObservationSpec,
    *,
    run: str,
    workers: int,
    config: DemonstrationConfig,
) -> TrainingStore:
    """Records a policy's episodes with the expert's labels, in its own observations; run again to resume.

    Args:
        out: the store.
        suite: of LIBERO.
        tasks: task ids.
        episodes_per_task: of each task.
        spec: the observations to be recorded; the policy's have to be these.
        run: a run, one of its checkpoints, or a policy, as :func:`wmjax.policy.saved.find_policy` takes it.
        workers: simulator processes.
        config: its ``seed`` chooses the placements, its ``label_steps`` the length of the labels, its
            ``target_velocity`` the drift of the target.

    Raises:
        UserError: no policy there, one of other specs, a task that the expert cannot do, or a folder of other episodes.

    """
    from wmjax.policy.policy import load_policy
    from wmjax.policy.saved import find_policy

    enable_compilation_cache()
    found = find_policy(run)
    if config.hold_steps:
        raise UserError(
            f"hold-steps is {config.hold_steps} with --run, but it is the policy that acts from the start; leave it out"
        )
    protocol = dataclasses.replace(_protocol(found, suite, tasks), target_velocity=config.target_velocity)
    horizon, steps = protocol.open_loop_horizon, config.label_steps
    policy = load_policy(found.folder, open_loop_horizon=horizon)
    require_specs(policy, spec, steps)
    identity = {"step": found.step, "hash": found.hash, "horizon": horizon}
    aggregation = Aggregation(out, policy.observation_spec, identity, config)
    if missing := aggregation.missing(suite, tasks, episodes_per_task):
        log.info("%d episodes to record into %s", len(missing), out)
        _run(policy, protocol, aggregation, missing, steps, workers)
    return aggregation.finish()


def require_specs(policy: "Policy", spec: ObservationSpec, label_steps: int) -> None:
    """Refuses a policy whose observations or actions are not those that the expert labels.

    Raises:
        UserError: names the first field that differs and both values, or the chunk that the labels do not fill.

    """
    require_simulator(policy.observation_spec)
    require_equal(policy.observation_spec, spec, "the policy", "what is to be recorded", ignore=("simulator",))
    fix = "choose a policy that was trained on the expert's demonstrations"
    require_same_actions(policy.action_spec, ACTION_SPEC, "the expert", fix)
    if policy.action_spec.chunk > label_steps:
        raise UserError(
            f"label-steps is {label_steps}, the policy predicts {policy.action_spec.chunk} actions; give that many"
        )


def _protocol(found: "SavedPolicy", suite: str, tasks: Sequence[int]) -> Protocol:
    """The protocol of the evaluation after a policy's training, on random placements, of which nothing drifts."""
    name, chunk = found.experiment.evaluation.protocol, found.experiment.model.chunk
    horizon = min(load_protocol(name).open_loop_horizon, chunk)
    protocol = load_protocol(name, suite=suite, tasks=tuple(tasks), episodes_per_task=1, open_loop_horizon=horizon)
    return dataclasses.replace(
        protocol, init="random", first_index=0, oracle=None, corruption="none", target_velocity=0.0, camera_dropout=0.0,
        realtime="none",
    )  # fmt: skip


def _run(
    policy: "Policy",
    protocol: Protocol,
    aggregation: Aggregation,
    episodes: Sequence[EpisodeId],
    label_steps: int,
    workers: int,
) -> None:
    """Runs the episodes; each is on disk as soon as it ends."""
    from wmjax.policy.policy_actor import PolicyActor

    actor, labeller = PolicyActor(policy, protocol.seed), functools.partial(Labeller, label_steps=label_steps)
    evaluate.watch(actor, protocol, episodes, labeller, aggregation.add, workers=workers)
