"""Which goal was reached first, by the policy's instruction: a confusion matrix of goals."""

import dataclasses
from collections import Counter
from collections.abc import Iterable
from typing import Any

from wmjax.core.text_table import text_table
from wmjax.rollout.results import EpisodeRecord

NONE = "none"
"""The column of episodes in which no goal was reached."""


@dataclasses.dataclass(frozen=True)
class GoalRow:
    """The episodes with one instruction.

    Attributes:
        told_task: the task of the suite whose sentence it is; None for a neutral one.
        told: the sentence.
        reached: episodes by the task whose goal was reached first, or :data:`NONE`.

    """

    told_task: int | None
    told: str
    reached: dict[str, int]


@dataclasses.dataclass(frozen=True)
class GoalTable:
    """One row per sentence."""

    rows: tuple[GoalRow, ...]

    def table(self) -> str:
        """Plain text: a row per instruction, a column per goal reached first."""
        head, *rows = self.cells()
        return f"goal reached first (task), by the sentence told:\n{text_table(head, rows, left=(0, -1))}"

    def cells(self) -> list[tuple[str, ...]]:
        """The head and the rows; a cell without an episode is a dot."""
        told = {row.told_task for row in self.rows if row.told_task is not None}
        reached = {int(task) for row in self.rows for task in row.reached if task != NONE}
        columns = [*map(str, sorted(told | reached)), NONE]
        rows = [
            (
                "-" if row.told_task is None else str(row.told_task),
                *(str(row.reached.get(c, ".")) for c in columns),
                row.told,
            )
            for row in self.rows
        ]
        return [("told", *columns, "sentence"), *rows]

    def as_list(self) -> list[dict[str, Any]]:
        """JSON values."""
        return [dataclasses.asdict(row) for row in self.rows]


def count_goals(records: Iterable[EpisodeRecord]) -> GoalTable | None:
    """The table of the episodes that ended in a success or a failure; None if no other goal could be judged in any."""
    counts: dict[tuple[int, str], Counter[str]] = {}
    for record in records:
        if record.reached is not None and record.outcome in ("success", "failure"):
            key = -1 if record.told_task is None else record.told_task, record.told
            counts.setdefault(key, Counter())[str(record.reached[0]) if record.reached else NONE] += 1
    rows = [
        GoalRow(None if task < 0 else task, told, dict(sorted(counts[task, told].items())))
        for task, told in sorted(counts)
    ]
    return GoalTable(tuple(rows)) if rows else None
