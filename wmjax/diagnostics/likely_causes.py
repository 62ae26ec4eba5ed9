"""Why the loss is low but the success rate is not high: the evidence in one place, and the likely causes in order.

What would make every policy fail comes first: a simulator that does not repeat a recording, observations that are not
those of the training. Then what the policy has not learned, and last what it does in the episodes in which it fails.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping

from wmjax.diagnostics.failure_classes import Kind
from wmjax.rollout.actors import REPLAYS_SUCCEED

PIXELS, STATE = 16.0, 0.01
"""Largest differences of pixels (of 255) and state that another OpenGL explains."""
LEARNED, OVERFITTED, NOISY = 0.5, 0.2, 0.05
"""R² of the arm below which training was too short; its fall from training to validation, its rise without noise."""
GRIPPER = 0.7
"""Share of right gripper commands near a change below which the gripper is the likely cause."""
FAILING = 0.95
"""Success rate from which on nothing is wrong."""


@dataclasses.dataclass(frozen=True)
class Replay:
    """Recorded episodes that were executed again: how many, successes, and the largest mean differences."""

    episodes: int
    successes: int
    pixels: float
    state: float


@dataclasses.dataclass(frozen=True)
class Evidence:
    """The evidence about a run; unknown values are None or empty.

    Attributes:
        run: the run, as the user named it.
        recipe: of its training.
        rate: success rate in closed loop.
        replay: of its own demonstrations.
        training, validation: R² of the arm on the two sides of the split.
        draws: R² of the arm on validation by how a flow's noise is used: ``one draw``, ``no noise``.
        unused: inputs that hardly change the actions.
        gripper: share of right gripper commands near a change of the command.
        worst_phase: the phase whose arm is predicted worst.
        failures: number of failed episodes by class.

    """

    run: str
    recipe: str
    rate: float | None = None
    replay: Replay | None = None
    training: float | None = None
    validation: float | None = None
    draws: Mapping[str, float] = dataclasses.field(default_factory=dict)
    unused: tuple[str, ...] = ()
    gripper: float | None = None
    worst_phase: str = ""
    failures: Mapping[Kind, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Cause:
    """A likely cause in words, and the command that addresses it or gives details."""

    text: str
    command: str


def likely_causes(evidence: Evidence) -> list[Cause]:
    """The causes that the evidence supports, the likeliest first; empty if nothing stands out."""
    return [cause for check in _CHECKS for cause in check(evidence)]


def _train(evidence: Evidence, *settings: str) -> str:
    return " ".join(["python -m wmjax.train --config", evidence.recipe, "--run NEW_RUN", *settings])


def _replays(evidence: Evidence) -> Iterator[Cause]:
    replay = evidence.replay
    if replay is None or not replay.episodes:
        return
    if replay.successes < REPLAYS_SUCCEED * replay.episodes:
        yield Cause(
            f"Only {replay.successes} of {replay.episodes} recorded episodes succeed when their own actions are "
            "executed again: the simulator is not the one that they were recorded in, and no policy can do better.",
            "python -m wmjax.doctor",
        )
    if replay.pixels > PIXELS or replay.state > STATE:
        yield Cause(
            f"What the policy sees in the simulator is not what it was trained on: in the same states pixels differ by "
            f"up to {replay.pixels:.0f} of 255 and the robot's state by up to {replay.state:.3f}.",
            "python -m wmjax.doctor",
        )


def _inputs(evidence: Evidence) -> Iterator[Cause]:
    spoken = [name for name in evidence.unused if "instruction" in name]
    visual = [name for name in evidence.unused if "instruction" not in name]
    for what, names in (("hardly looks at its images", visual), ("does not listen to its instruction", spoken)):
        if names:
            yield Cause(
                f"The policy {what}: its actions stay the same under {', '.join(names)}.",
                f"python -m wmjax.diagnose --run {evidence.run}",
            )


def _open_loop(evidence: Evidence) -> Iterator[Cause]:
    training, validation = evidence.training, evidence.validation
    if training is not None and training < LEARNED:
        yield Cause(
            f"The policy has not learned its own training data: R² of the arm is {training:.2f} there.",
            _train(evidence, "--train.steps", "TWICE_AS_MANY"),
        )
    elif training is not None and validation is not None and training - validation > OVERFITTED:
        yield Cause(
            f"The policy has memorised its demonstrations: R² of the arm is {training:.2f} on them and "
            f"{validation:.2f} on others, worst in the phase {evidence.worst_phase!r}.",
            _train(evidence, "--data.episodes_per_task", "TWICE_AS_MANY"),
        )


def _noise(evidence: Evidence) -> Iterator[Cause]:
    one, none = (evidence.draws.get(name) for name in ("one draw", "no noise"))
    if one is not None and none is not None and none - one > NOISY:
        yield Cause(
            f"The noise that the flow starts from costs accuracy: R² of the arm is {one:.2f} for a draw and {none:.2f} "
            "without noise.",
            _train(evidence, "--model.head.noise_scale", "0"),
        )


def _gripper(evidence: Evidence) -> Iterator[Cause]:
    if evidence.gripper is not None and evidence.gripper < GRIPPER:
        yield Cause(
            f"The gripper gets the wrong command at the wrong time: {100 * evidence.gripper:.0f} % of the commands "
            "near a change are right.",
            _train(evidence, "--model.head.gripper_weight", "1.0"),
        )


WHAT = {
    Kind.NEVER_STARTED: "the hand does not move",
    Kind.STUCK: "the hand comes to a stop",
    Kind.NEVER_CLOSED: "the fingers never close",
    Kind.MISSED_GRASP: "the fingers close where the object is not",
    Kind.EMPTY_CARRY: "the fingers close on nothing, and the policy continues as if they held the object",
    Kind.DROP: "the object is lost on the way",
    Kind.MISPLACEMENT: "the object is put down beside its place",
    Kind.WRONG_OBJECT: "the policy takes another object",
    Kind.KNOCKED_OVER: "the object is knocked over",
    Kind.OUT_OF_TIME: "the policy is too slow",
}
"""The classes of failures in words."""


def _states(evidence: Evidence) -> Iterator[Cause]:
    """The commonest failure: for states that the demonstrations lack, labels in these states help."""
    if not evidence.failures or (evidence.rate is not None and evidence.rate >= FAILING):
        return
    kind = max(evidence.failures, key=lambda name: evidence.failures[name])
    total = sum(evidence.failures.values())
    yield Cause(
        f"In {evidence.failures[kind]} of {total} failed episodes {WHAT[kind]} ({kind}), and the policy does not "
        "recover: its demonstrations do not show how. Record what the expert does in the states that the policy "
        "reaches, and train on both.",
        f"python -m wmjax.record --run {evidence.run} --out AGGREGATE && "
        + _train(evidence, f"--train.init_from {evidence.run}", "--data.paths DEMONSTRATIONS,AGGREGATE"),
    )


_CHECKS: tuple[Callable[[Evidence], Iterator[Cause]], ...] = (_replays, _inputs, _open_loop, _noise, _gripper, _states)
