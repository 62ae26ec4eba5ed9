"""Open-loop errors by phase of a demonstration: where a policy that reads recorded observations goes wrong."""

import dataclasses
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, Int

from wmjax.core.text_table import text_table
from wmjax.data.statistics import closing
from wmjax.data.store import TrainingStore
from wmjax.diagnostics.samples import ActionWindows, place
from wmjax.trainer.metrics import NO_VARIANCE

Phase = Literal["reach", "grasp", "carry", "release", "after"]
PHASES: tuple[Phase, ...] = get_args(Phase)
AHEAD = 8
"""Control steps before a change of a gripper's command that belong to the grasp or the release."""


def phases_of(store: TrainingStore, frames: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """The phase of each frame, an index of :data:`PHASES`, from the demonstrator's commands to the first gripper.

    ``reach`` until the fingers are about to close for the first time, ``grasp`` and ``release`` up to 8 control steps
    before a change of the command, ``carry`` while they are closed, ``after`` once they have opened again. All frames
    of a robot without a gripper are ``reach``.
    """
    where = place(store, frames)
    if not store.action_spec.grippers:
        return np.zeros(len(frames), int)
    closed = closing(store.action, store.action_spec)[:, 0]
    found = np.zeros(len(frames), int)
    for number, (row, first, end) in enumerate(zip(where.row, where.first_row, where.end_row, strict=True)):
        changes = (closed[row : min(row + AHEAD, end)] != closed[row]).any()
        name: Phase = "after" if closed[first:row].any() else "reach"
        if closed[row]:
            name = "release" if changes else "carry"
        elif changes:
            name = "grasp"
        found[number] = PHASES.index(name)
    return found


@dataclasses.dataclass(frozen=True)
class PhaseSection:
    """R² by phase and action dimension.

    Attributes:
        r2: of each phase, per dimension: 1 minus the phase's mean squared error over the variance in the whole split,
            so that phases can be compared, and one in which hardly anything moves is not blown up.
        r2_arm: of each phase, the mean over the arm's dimensions.
        share: of the split's frames.
        names: of the dimensions.

    """

    r2: dict[str, Float[np.ndarray, " dim"]]
    r2_arm: dict[str, float]
    share: dict[str, float]
    names: tuple[str, ...]

    @property
    def worst(self) -> str:
        """The phase whose arm is predicted worst; empty without any."""
        known = {name: value for name, value in self.r2_arm.items() if np.isfinite(value)}
        return min(known, key=lambda name: known[name]) if known else ""

    def table(self) -> str:
        """A plain-text report."""
        rows = [(name, self.share[name], *row, self.r2_arm[name]) for name, row in self.r2.items()]
        return text_table(("phase", "share", *self.names, "arm"), rows)


def phase_section(
    predicted: Float[np.ndarray, "n chunk dim"], windows: ActionWindows, phases: Int[np.ndarray, " n"]
) -> PhaseSection:
    """Scores raw predicted chunks by the phase of their frame."""
    actual, mask, arm = windows.action, windows.mask, list(windows.spec.arm)
    variance = actual[mask].var(0, dtype=np.float64)
    r2: dict[str, np.ndarray] = {}
    r2_arm: dict[str, float] = {}
    share: dict[str, float] = {}
    for number, name in enumerate(PHASES):
        of_phase = phases == number
        if of_phase.any():
            r2[name] = _r2(predicted, actual, mask & of_phase[:, None], variance)
            r2_arm[name] = float(np.nanmean(r2[name][arm])) if np.isfinite(r2[name][arm]).any() else float("nan")
            share[name] = float(of_phase.mean())
    return PhaseSection(r2, r2_arm, share, windows.spec.names)


def _r2(
    predicted: Float[np.ndarray, "n chunk dim"],
    actual: Float[np.ndarray, "n chunk dim"],
    mask: Bool[np.ndarray, "n chunk"],
    variance: Float[np.ndarray, " dim"],
) -> Float[np.ndarray, " dim"]:
    if not mask.any():
        return np.full(len(variance), np.nan)
    error = np.square(predicted[mask].astype(np.float64) - actual[mask]).mean(0)
    return np.where(variance > NO_VARIANCE, 1.0 - error / np.maximum(variance, 1e-30), np.nan)
