"""Outcome counts and success rates of an evaluation, per task and over all tasks."""

import dataclasses
from collections import Counter
from collections.abc import Iterable
from typing import Any

from wmjax.analysis.goal_table import GoalTable, count_goals
from wmjax.analysis.intervals import wilson
from wmjax.core.text_table import text_table
from wmjax.rollout.results import EpisodeRecord


@dataclasses.dataclass(frozen=True)
class TaskSummary:
    """Outcome counts of one task, or of all. Rates are over the episodes that finished (success or failure)."""

    task: str
    instruction: str
    successes: int
    failures: int
    timeouts: int
    crashes: int
    mean_steps: float

    @property
    def finished(self) -> int:
        """Episodes that ended in a success or a failure."""
        return self.successes + self.failures

    @property
    def rate(self) -> float:
        """Success rate; 0 without finished episodes."""
        return self.successes / self.finished if self.finished else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the rate."""
        return wilson(self.successes, self.finished)

    def as_dict(self) -> dict[str, Any]:
        """JSON values, with rate and interval."""
        return {**dataclasses.asdict(self), "rate": self.rate, "interval_95": list(self.interval)}


@dataclasses.dataclass(frozen=True)
class Summary:
    """The verdict of an evaluation: one row per task, and all of them together.

    ``goals`` says which goals were reached where the scene has those of several tasks, else it is None.
    """

    tasks: tuple[TaskSummary, ...]
    overall: TaskSummary
    goals: GoalTable | None = None

    def table(self) -> str:
        """Plain-text tables."""
        head = ("task", "successes", "rate", "95 % interval", "steps", "timeouts", "crashes", "instruction")
        everything = [*self.tasks, self.overall] if len(self.tasks) > 1 else self.tasks
        text = text_table(head, map(_row, everything), left=(0, -1))
        return text if self.goals is None else f"{text}\n\n{self.goals.table()}"

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        goals = {} if self.goals is None else {"goals": self.goals.as_list()}
        return {"overall": self.overall.as_dict(), "tasks": [task.as_dict() for task in self.tasks], **goals}


def _row(task: TaskSummary) -> tuple[str, ...]:
    low, high = task.interval
    successes, interval = f"{task.successes}/{task.finished}", f"{100 * low:.1f}-{100 * high:.1f} %"
    faults = (str(task.timeouts), str(task.crashes))
    return (
        task.task,
        successes,
        f"{100 * task.rate:.1f} %",
        interval,
        f"{task.mean_steps:.0f}",
        *faults,
        task.instruction,
    )


def summarize(records: Iterable[EpisodeRecord]) -> Summary:
    """Counts the outcomes per task (ordered by suite and id) and overall."""
    groups: dict[tuple[str, int], list[EpisodeRecord]] = {}
    everything = list(records)
    for record in everything:
        groups.setdefault((record.suite, record.task_id), []).append(record)
    tasks = tuple(_summarize(f"{suite}/{task_id}", groups[suite, task_id]) for suite, task_id in sorted(groups))
    overall = dataclasses.replace(_summarize("all", everything), instruction="")
    return Summary(tasks, overall, count_goals(everything))


def _summarize(name: str, records: list[EpisodeRecord]) -> TaskSummary:
    instruction = next((record.instruction for record in records if record.instruction), "")
    counts = Counter(record.outcome for record in records)
    steps = [r.steps for r in records if r.outcome in ("success", "failure")]
    mean = sum(steps) / len(steps) if steps else 0.0
    return TaskSummary(
        name, instruction, counts["success"], counts["failure"], counts["timeout"], counts["crash"], mean
    )
