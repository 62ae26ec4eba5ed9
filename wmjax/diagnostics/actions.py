"""Action errors: R² per dimension and step, and mean squared errors beside those of predictors without an observation.

All numbers are in raw units, of the clipped actions that a rollout would execute, over the steps that exist.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float

from wmjax.core.specs import ActionSpec
from wmjax.core.text_table import text_table
from wmjax.data.statistics import closing
from wmjax.diagnostics.samples import ActionWindows
from wmjax.trainer.metrics import NO_VARIANCE, r2_over_steps


@dataclasses.dataclass(frozen=True)
class ActionSection:
    """Actions against the expert's.

    Attributes:
        r2: per chunk step and dimension; 0 is what that step's and dimension's mean over the same split scores.
        r2_all: per dimension over all chunk steps.
        r2_task: the same for each task alone, against the task's own mean: what is left when knowing the task, or
            having memorised its average, earns nothing. Negative where the task's actions hardly vary.
        r2_arm: of each row of the table (``step 0``, ..., ``all``, each task): the arm's dimensions pooled, each in
            units of its deviation in the split, so that a dimension that hardly moves in one task counts little.
        mse: for each predictor the mean squared error over all dimensions, the arm's and the gripper's.
            ``constant`` is the split's mean action (its R² is 0 by definition); ``perfect gripper, constant arm``
            is what looked like learning in the predecessor.
        gripper: share of right commands over all steps, and over the steps near a change of the command; for the
            model, for repeating the last executed command, and for always giving the commoner one. Of all grippers
            together; empty without one.
        steps: chunk steps scored, and how many of them are near a change.
        names: of the dimensions.

    """

    r2: Float[np.ndarray, "chunk dim"]
    r2_all: Float[np.ndarray, " dim"]
    r2_task: dict[str, Float[np.ndarray, " dim"]]
    r2_arm: dict[str, float]
    mse: dict[str, tuple[float, float, float]]
    gripper: dict[str, tuple[float, float]]
    steps: tuple[int, int]
    names: tuple[str, ...]

    def table(self) -> str:
        """A plain-text report."""
        named = {f"step {i}": row for i, row in enumerate(self.r2)} | {"all": self.r2_all} | self.r2_task
        rows = [(name[:64], *row, self.r2_arm[name]) for name, row in named.items()]
        errors = [(name, *values) for name, values in self.mse.items()]
        grippers = [(name, *values) for name, values in self.gripper.items()]
        return "\n".join(
            (
                text_table(("R2 (0: constant predictor)", *self.names, "arm"), rows),
                "",
                text_table(("MSE, raw units", "all", "arm", "gripper"), errors),
                "",
                text_table(("gripper accuracy", "all steps", "near a change"), grippers),
                f"{self.steps[0]} chunk steps, {self.steps[1]} within 2 control steps of a change of the command",
            )
        )


def pooled_r2(
    predicted: Float[np.ndarray, "steps dim"],
    actual: Float[np.ndarray, "steps dim"],
    deviation: Float[np.ndarray, " dim"],
) -> float:
    """R² of all dimensions together, each divided by ``deviation``; dimensions that never vary are left out."""
    moves = deviation**2 > NO_VARIANCE
    guess, truth = (values[:, moves].astype(np.float64) / deviation[moves] for values in (predicted, actual))
    total = np.square(truth - truth.mean(0)).sum() if len(truth) else 0.0
    return float(1.0 - np.square(guess - truth).sum() / total) if total > 0.0 else float("nan")


def action_section(
    predicted: Float[np.ndarray, "n chunk dim"], windows: ActionWindows, tasks: dict[int, str]
) -> ActionSection:
    """Scores raw predicted chunks; ``tasks`` names the tasks."""
    actual, mask, spec = windows.action, windows.mask, windows.spec
    arm = list(spec.arm)
    of_task = {name: mask & (windows.task == i)[:, None] for i, name in tasks.items() if (windows.task == i).any()}
    of_step = {f"step {i}": mask & (np.arange(mask.shape[1]) == i) for i in range(mask.shape[1])}
    parts = of_step | {"all": mask} | of_task
    deviation = actual[mask].std(0, dtype=np.float64)[arm]
    return ActionSection(
        r2=np.stack([r2_over_steps(predicted, actual, part) for part in of_step.values()]),
        r2_all=r2_over_steps(predicted, actual, mask),
        r2_task={name: r2_over_steps(predicted, actual, part) for name, part in of_task.items()},
        r2_arm={name: pooled_r2(predicted[p][:, arm], actual[p][:, arm], deviation) for name, p in parts.items()},
        mse=reference_errors(predicted[mask], actual[mask], spec),
        gripper=gripper_accuracies(closing(predicted, spec), windows),
        steps=(int(mask.sum()), int(windows.near_change.any(-1).sum())),
        names=spec.names,
    )


def reference_errors(
    predicted: Float[np.ndarray, "steps dim"], actual: Float[np.ndarray, "steps dim"], spec: ActionSpec
) -> dict[str, tuple[float, float, float]]:
    """Mean squared errors (all, arm, gripper) of the model and of the two predictors that need no observation."""
    constant = np.broadcast_to(actual.mean(0, dtype=np.float64), actual.shape)
    cheat = np.where(np.isin(np.arange(spec.dim), spec.grippers), actual, constant)
    guesses = {"model": predicted, "constant": constant, "perfect gripper, constant arm": cheat}
    return {name: _mse(guess, actual, spec) for name, guess in guesses.items()}


def _mse(guess: np.ndarray, actual: np.ndarray, spec: ActionSpec) -> tuple[float, float, float]:
    error = np.square(guess.astype(np.float64) - actual)
    parts = (error[:, list(indices)] for indices in (spec.arm, spec.grippers))
    return float(error.mean()), *(float(part.mean()) if part.size else float("nan") for part in parts)  # type: ignore[return-value]


def gripper_accuracies(
    closes: Bool[np.ndarray, "n chunk grippers"], windows: ActionWindows
) -> dict[str, tuple[float, float]]:
    """Accuracy over all steps and near changes, of the model and of two predictors that cannot see."""
    if not windows.spec.grippers:
        return {}
    truth = closing(windows.action, windows.spec)
    mask = np.broadcast_to(windows.mask[..., None], truth.shape)
    repeated = np.broadcast_to(windows.closed_before[:, None], truth.shape)
    common = np.broadcast_to(truth[windows.mask].mean(0) >= 0.5, truth.shape)
    guesses = {"model": closes, "repeat the last command": repeated, "the commoner command": common}
    return {
        name: (_accuracy(guess == truth, mask), _accuracy(guess == truth, windows.near_change))
        for name, guess in guesses.items()
    }


def _accuracy(right: Bool[np.ndarray, "n chunk grippers"], mask: Bool[np.ndarray, "n chunk grippers"]) -> float:
    return float(right[mask].mean()) if mask.any() else float("nan")
