"""The interface of episode metrics: numbers computed from an evaluated episode, beside success.

A metric is one class. ``evaluation.metrics`` names any number of them, by names of :data:`METRICS` or as
``package.module:Class``. Their numbers are in the ``info`` of ``episodes.jsonl`` and in the report.
"""

import abc
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32

from wmjax.core.errors import UserError
from wmjax.core.registry import Registry
from wmjax.core.settings import quoted
from wmjax.core.specs import ActionSpec

if TYPE_CHECKING:
    from wmjax.rollout.results import EpisodeRecord


class EpisodeMetric(abc.ABC):
    """A measurement of every episode that ended in a success or a failure.

    Args:
        robot: of the environment's raw actions.

    """

    def __init__(self, robot: ActionSpec) -> None:
        self.robot = robot

    @abc.abstractmethod
    def measure(self, record: "EpisodeRecord", actions: Float32[np.ndarray, "steps action"]) -> Mapping[str, float]:
        """Numbers by name, such as ``action/change``; NaN and infinity are left out.

        Args:
            record: the episode's, without what the metrics measure.
            actions: the raw actions that were executed.

        """


class Smoothness(EpisodeMetric):
    """``action/change``: the mean Euclidean distance of an executed action from the one before, without grippers."""

    def measure(self, record: "EpisodeRecord", actions: Float32[np.ndarray, "steps action"]) -> Mapping[str, float]:
        """The distance in raw units; no number for an episode of one step."""
        arm = actions[:, list(self.robot.arm)].astype(float)
        if len(arm) < 2:
            return {}
        return {"action/change": float(np.linalg.norm(np.diff(arm, axis=0), axis=1).mean())}


METRICS: Registry[EpisodeMetric] = Registry(
    "evaluation.metrics",
    {"smoothness": "wmjax.rollout.metrics:Smoothness"},
    EpisodeMetric,  # type: ignore[type-abstract]
)
"""The episode metrics that have a name."""


def measure_all(
    metrics: Sequence[EpisodeMetric], record: "EpisodeRecord", actions: Float32[np.ndarray, "steps action"]
) -> dict[str, float]:
    """The finite numbers that all metrics measure in an episode.

    Raises:
        UserError: a metric failed, gave something else than numbers by name, or a name that the episode has already.

    """
    found: dict[str, float] = {}
    for metric in metrics:
        kind, measured = type(metric), _measured(metric, record, actions)
        if taken := sorted(measured.keys() & (found.keys() | record.info.keys())):
            raise UserError(
                f"evaluation.metrics: {kind.__module__}:{kind.__qualname__} measures {taken[0]!r}, a name that another "
                "metric or the episode's info has; give it another name"
            )
        found |= measured
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _measured(
    metric: EpisodeMetric, record: "EpisodeRecord", actions: Float32[np.ndarray, "steps action"]
) -> dict[str, float]:
    """What one metric measures, as floats by name."""
    where = f"evaluation.metrics: {type(metric).__module__}:{type(metric).__qualname__}"
    try:
        found = dict(metric.measure(record, actions))
    except Exception as error:  # somebody else's code, which may raise anything
        cause = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(
            f"{where} failed on {record.key} ({cause}); correct the metric and repeat the command, which resumes there"
        ) from error
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, int | float | np.integer | np.floating | np.bool_):
            raise UserError(f"{where} gave {quoted(name)}: {quoted(value)} on {record.key}; give numbers by name")
    return {name: float(value) for name, value in found.items()}
