"""The table of a list of protocols: one row per cell and their average, as text, Markdown and JSON."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wmjax.analysis.intervals import mean_rate
from wmjax.analysis.summary import Summary
from wmjax.core.files import atomic_path, write_json
from wmjax.core.provenance import provenance
from wmjax.core.text_table import text_table
from wmjax.reporting.sweep_tables import markdown

HEAD = ("protocol", "suite", "successes", "rate", "95 % interval", "episodes", "timeouts", "crashes")


@dataclasses.dataclass(frozen=True)
class CellResult:
    """The results of one cell.

    Attributes:
        protocol: its name.
        suite: of its episodes.
        folder: of its evaluation.
        wanted: how many episodes it has.
        summary: of those that have been run; None before the first.

    """

    protocol: str
    suite: str
    folder: Path
    wanted: int
    summary: Summary | None = None

    @property
    def ended(self) -> int:
        """Episodes that need not be run again, timeouts and crashes included."""
        if self.summary is None:
            return 0
        overall = self.summary.overall
        return overall.finished + overall.timeouts + overall.crashes

    @property
    def complete(self) -> bool:
        """Whether all episodes have been run."""
        return self.ended >= self.wanted

    def row(self) -> tuple[str, ...]:
        """Its cells of the table; rates are over the episodes that ended in a success or a failure."""
        episodes = str(self.wanted) if self.complete else f"{self.ended} of {self.wanted}"
        if self.summary is None:
            return (self.protocol, self.suite, "", "", "", episodes, "", "")
        overall = self.summary.overall
        counts = f"{overall.successes}/{overall.finished}"
        faults = str(overall.timeouts), str(overall.crashes)
        return (self.protocol, self.suite, counts, *_percent(overall.rate, overall.interval), episodes, *faults)

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        values: dict[str, Any] = {"protocol": self.protocol, "suite": self.suite, "folder": str(self.folder)}
        values |= {"wanted": self.wanted, "episodes": self.ended, "complete": self.complete}
        return values | (self.summary.as_dict() if self.summary else {})


@dataclasses.dataclass(frozen=True)
class ListTable:
    """The results of a list.

    Attributes:
        name: of the list, with what was changed.
        cells: in its order.

    """

    name: str
    cells: Sequence[CellResult]

    @property
    def average(self) -> tuple[float, tuple[float, float]] | None:
        """The mean of the cells' rates with its interval; None until every cell is complete."""
        verdicts = [cell.summary.overall for cell in self.cells if cell.summary is not None and cell.complete]
        if len(verdicts) < len(self.cells) or not all(verdict.finished for verdict in verdicts):
            return None
        return mean_rate([(verdict.successes, verdict.finished) for verdict in verdicts])

    def rows(self) -> list[tuple[str, ...]]:
        """The table's rows, the average last."""
        complete, average = sum(cell.complete for cell in self.cells), self.average
        ended, wanted = sum(cell.ended for cell in self.cells), sum(cell.wanted for cell in self.cells)
        episodes = str(wanted) if ended == wanted else f"{ended} of {wanted}"
        rate = ("", "") if average is None else _percent(*average)
        last = ("average", f"{complete} of {len(self.cells)} complete", "", *rate, episodes, "", "")
        return [*(cell.row() for cell in self.cells), last]

    def text(self) -> str:
        """Aligned plain text."""
        return text_table(HEAD, self.rows())

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        average = self.average
        found = None if average is None else {"rate": average[0], "interval_95": list(average[1])}
        return {"list": self.name, "average": found, "cells": [cell.as_dict() for cell in self.cells]}

    def write(self, folder: Path) -> list[Path]:
        """Writes ``NAME.txt``, ``NAME.md`` and ``NAME.json`` into a folder; returns their paths."""
        paths = [folder / f"{self.name}.{kind}" for kind in ("txt", "md", "json")]
        lines = "\n".join(markdown(HEAD, self.rows()))
        for path, text in zip(paths, (self.text(), lines), strict=False):
            with atomic_path(path) as temporary:
                temporary.write_text(text + "\n", encoding="utf-8")
        write_json(paths[-1], {**provenance(), **self.as_dict()})
        return paths


def _percent(rate: float, interval: tuple[float, float]) -> tuple[str, str]:
    return f"{100 * rate:.1f} %", f"{100 * interval[0]:.1f}-{100 * interval[1]:.1f} %"
