"""The summary of a finished run: success table, folder, next commands."""

from wmjax.analysis.summary import Summary
from wmjax.experiment.next_steps import next_steps
from wmjax.experiment.plan import RunPlan


def verdict(plan: RunPlan, summary: Summary) -> str:
    """The outcome in a few lines, the run's folder, and what to do next."""
    assert plan.protocol is not None
    steps = next_steps(plan.experiment, plan.folder, plan.protocol)
    lines = ["", summary.table(), "", f"run: {plan.folder}", "next:", *(f"  {line}" for line in steps)]
    return "\n".join(lines)
