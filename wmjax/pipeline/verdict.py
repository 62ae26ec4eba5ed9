"""The outcome of a run in a few lines."""

from pathlib import Path

from wmjax.analysis.summary import Summary
from wmjax.experiment.config import Experiment
from wmjax.experiment.next_steps import next_steps


def verdict(experiment: Experiment, run: Path, summary: Summary) -> str:
    """The outcome in a few lines, the run's folder, and what to do next."""
    lines = ["", summary.table(), "", f"run: {run}", "next:", *(f"  {line}" for line in next_steps(experiment, run))]
    return "\n".join(lines)
