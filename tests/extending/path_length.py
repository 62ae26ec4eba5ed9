"""An episode metric in one file: how far the commands of an episode would move a point."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float32

from wmjax.rollout.metrics import EpisodeMetric
from wmjax.rollout.results import EpisodeRecord


class PathLength(EpisodeMetric):
    """``path/length`` is the sum of the actions' norms, and ``path/per_success`` exists for successes only."""

    def measure(self, record: EpisodeRecord, actions: Float32[np.ndarray, "steps action"]) -> Mapping[str, float]:
        """From the executed actions."""
        length = float(np.linalg.norm(actions, axis=1).sum())
        return {"path/length": length, "path/per_success": length if record.success else float("nan")}
