"""The inputs that the actions depend on: images, instruction, world memory. Chunks are raw actions, not clipped."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float

from wmjax.core.text_table import text_table
from wmjax.data.statistics import MIN_ACTION_SCALE, clip_action, closing
from wmjax.diagnostics.passes import ANOTHER_DRAW, MEAN_DRAW, OTHERS_FUTURE, PLAIN, Condition, Outcome
from wmjax.diagnostics.samples import ActionWindows
from wmjax.trainer.metrics import mean_r2, r2_over_steps

Chunks = Mapping[str, Float[np.ndarray, "n chunk dim"]]
"""Of each condition, by name."""
NO_EFFECT = 0.1
"""Change of the arm's actions, in their standard deviations, below which an input is called unused."""


@dataclasses.dataclass(frozen=True)
class Effect:
    """The actions under one condition.

    Attributes:
        change: mean |difference| from the plain pass over the standard deviation, over the arm's dimensions.
        flips: share of gripper commands that differ from the plain pass.
        r2: per dimension over all chunk steps, of clipped actions.
        r2_arm: mean over the arm's dimensions.
        gripper: share of right gripper commands.
        loss: the head's loss on the arm's dimensions over complete chunks.

    """

    change: float
    flips: float
    r2: Float[np.ndarray, " dim"]
    r2_arm: float
    gripper: float
    loss: float


def effect_table(first: str, effects: Mapping[str, Effect], names: Sequence[str]) -> str:
    """One row per condition; ``names`` are those of the dimensions."""
    head = ("arm change / std", "gripper flips", *names, "mean arm", "gripper right", "arm loss")
    rows = [(n, e.change, e.flips, *e.r2, e.r2_arm, e.gripper, e.loss) for n, e in effects.items()]
    return text_table((first, *head), rows)


@dataclasses.dataclass(frozen=True)
class InputSection:
    """The policy with an input replaced; state and world memory stay the true ones.

    Attributes:
        effects: by condition. Of a flow head also another draw of its noise, its own spread for scale, and the mean of
            several draws, whose R² is what to put beside a regression head's (a little below the expectation's).
        alarms: inputs that the policy seems not to use.
        names: of the action's dimensions.

    """

    effects: dict[str, Effect]
    alarms: tuple[str, ...]
    names: tuple[str, ...]

    def table(self) -> str:
        """A plain-text report."""
        return "\n".join([effect_table("replaced", self.effects, self.names), *self.alarms])


@dataclasses.dataclass(frozen=True)
class MemorySection:
    """The policy with its memory corrupted.

    Attributes:
        gate: mean |tanh(gate)|; a small gate on a large context can still matter, hence the ratio.
        ratio: ‖injected‖ / ‖hidden‖ at the action tokens, averaged over samples.
        effects: by condition, those of :data:`wmjax.core.settings.Corruption`. A shuffled memory is that of another
            episode, drawn for each sample, at the same control step. Last, the closed memory with black images too:
            what is left is instruction and state. Within a task memories at one step are much alike: a small effect
            of ``shuffled_in_task`` does not show that the memory is unused.
        alarms: whether the policy seems not to use its memory.
        names: of the action's dimensions.

    """

    gate: float
    ratio: float
    effects: dict[str, Effect]
    alarms: tuple[str, ...]
    names: tuple[str, ...]

    def table(self) -> str:
        """A plain-text report."""
        gate = f"|gate| {self.gate:.4f}, injected / hidden {self.ratio:.4f}"
        return "\n".join([effect_table("memory", self.effects, self.names), gate, *self.alarms])


def input_section(
    chunks: Chunks, conditions: list[Condition], windows: ActionWindows, outcome: Outcome
) -> InputSection:
    """Scores the plain pass and every replaced input."""
    effects = _effects(conditions, chunks, windows, outcome)
    alarms = unused(effects, {c.name for c in conditions} - {ANOTHER_DRAW, MEAN_DRAW})
    return InputSection(effects, alarms, windows.spec.names)


def memory_section(
    chunks: Chunks, conditions: list[Condition], windows: ActionWindows, outcome: Outcome
) -> MemorySection:
    """Scores the plain pass and every corruption of the memory."""
    effects = _effects(conditions, chunks, windows, outcome)
    gate, ratio = (float(outcome.memory[f"memory/{name}"].mean()) for name in ("gate", "ratio"))
    alarms = unused(effects, {"shuffled", OTHERS_FUTURE, "closed"})
    return MemorySection(gate, ratio, effects, alarms, windows.spec.names)


def unused(effects: Mapping[str, Effect], names: set[str]) -> tuple[str, ...]:
    """One line for each condition of ``names`` that hardly moves the arm."""
    return tuple(
        f"HARDLY ANY EFFECT: {name} moves the arm's actions by {effect.change:.4f} of their standard deviation"
        for name, effect in effects.items()
        if name in names and effect.change < NO_EFFECT
    )


def _effects(
    conditions: list[Condition], chunks: Chunks, windows: ActionWindows, outcome: Outcome
) -> dict[str, Effect]:
    """Effects by the condition's name, the plain pass first."""
    names = [PLAIN, *(condition.name for condition in conditions)]
    loss = {name: outcome.head[name]["action/arm"] for name in names}
    return {name: effect_of(chunks[name], chunks[PLAIN], windows, loss[name]) for name in names}


def effect_of(
    chunk: Float[np.ndarray, "n chunk dim"],
    plain: Float[np.ndarray, "n chunk dim"],
    windows: ActionWindows,
    loss: float,
) -> Effect:
    """Compares a condition with the plain pass and with the expert.

    The change over the standard deviation is the same in raw and in normalised units.
    """
    mask: Bool[np.ndarray, "n chunk"] = windows.mask
    spec, arm = windows.spec, list(windows.spec.arm)
    deviation = np.maximum(windows.action[mask].std(0, dtype=np.float64), MIN_ACTION_SCALE)
    change = (np.abs(chunk - plain)[mask] / deviation)[:, arm]
    closes, before, right = (closing(values[mask], spec) for values in (chunk, plain, windows.action))
    r2 = r2_over_steps(clip_action(chunk, spec), windows.action, mask)
    return Effect(
        change=float(change.mean()),
        flips=float((closes != before).mean()) if spec.grippers else float("nan"),
        r2=r2,
        r2_arm=mean_r2(r2[arm]),
        gripper=float((closes == right).mean()) if spec.grippers else float("nan"),
        loss=loss,
    )
