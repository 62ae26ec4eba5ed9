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
        given_task: the task of the suite whose sentence it is; None for a neutral one.
        given_instruction: the sentence.
        reached: episodes by the task whose goal was reached first, or :data:`NONE`.

    """

    given_task: int | None
    given_instruction: str
    reached: dict[str, int]


@dataclasses.dataclass(frozen=True)
class GoalTable:
    """One row per sentence."""

    rows: tuple[GoalRow, ...]

    def table(self) -> str:
        """Plain text: a row per instruction, a column per goal reached first."""
        head, *rows = self.cells()
        return f"goal reached first (task), by the given instruction:\n{text_table(head, rows, left=(0, -1))}"

    def cells(self) -> list[tuple[str, ...]]:
        """The head and the rows; a cell without an episode is a dot."""
        given = {row.given_task for row in self.rows if row.given_task is not None}
        reached = {int(task) for row in self.rows for task in row.reached if task != NONE}
        columns = [*map(str, sorted(given | reached)), NONE]
        rows = [
            (
                "-" if row.given_task is None else str(row.given_task),
                *(str(row.reached.get(c, ".")) for c in columns),
                row.given_instruction,
            )
            for row in self.rows
        ]
        return [("given", *columns, "instruction"), *rows]

    def as_list(self) -> list[dict[str, Any]]:
        """JSON values."""
        return [dataclasses.asdict(row) for row in self.rows]


def count_goals(records: Iterable[EpisodeRecord]) -> GoalTable | None:
    """The table of the episodes that ended in a success or a failure; None if no other goal could be judged in any."""
    counts: dict[tuple[int, str], Counter[str]] = {}
    for record in records:
        if record.reached is not None and record.outcome in ("success", "failure"):
            key = -1 if record.given_task is None else record.given_task, record.given_instruction
            counts.setdefault(key, Counter())[str(record.reached[0]) if record.reached else NONE] += 1
    rows = [
        GoalRow(None if task < 0 else task, text, dict(sorted(counts[task, text].items())))
        for task, text in sorted(counts)
    ]
    return GoalTable(tuple(rows)) if rows else None
