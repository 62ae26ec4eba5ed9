"""Tables and a figure of a sweep's finished cells, from their JSON files alone."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from wmjax.analysis.intervals import wilson
from wmjax.analysis.seeds import student_interval
from wmjax.core.errors import UserError
from wmjax.core.files import atomic_path
from wmjax.core.paths import listed
from wmjax.core.reading import read_json
from wmjax.reporting.html import element

TABLES, FIGURE = "tables.md", "success.svg"
LABEL, WIDTH, ROW, MARGIN = 190, 620, 22, 12
"""Pixels of the figure: width of the names, of the whole, height of a row, and the space around it."""
GREY, INK = "#8a8f98", "#1f5fa8"


class Result(NamedTuple):
    """One evaluation of a finished cell; ``tasks`` has successes and episodes by suite and task."""

    cell: str
    seed: int
    protocol: str
    tasks: dict[str, tuple[int, int]]
    minutes: float

    @property
    def successes(self) -> int:
        """Over all tasks."""
        return sum(successes for successes, _ in self.tasks.values())

    @property
    def episodes(self) -> int:
        """Those that finished, over all tasks."""
        return sum(episodes for _, episodes in self.tasks.values())

    @property
    def rate(self) -> float:
        """Success rate; 0 without an episode that finished."""
        return self.successes / self.episodes if self.episodes else 0.0


def write_tables(folder: Path) -> list[Path]:
    """Writes ``tables.md`` and ``success.svg`` into a folder of finished cells; returns their paths.

    The same JSON files give the same bytes.

    Raises:
        UserError: no finished cell there, or a damaged file.

    """
    results = read_results(folder)
    if not results:
        raise UserError(f"{folder}: no finished cell; run the plan first, without --tables")
    paths = [folder / TABLES, folder / FIGURE]
    for path, text in zip(paths, (tables(results), figure(results)), strict=True):
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return paths


def read_results(folder: Path) -> list[Result]:
    """Every evaluation of every finished cell, by protocol, cell and seed."""
    found = []
    for path in listed(folder, "*.json"):
        values = read_json(path, dict[str, Any], "delete it, and the cell is run again")
        try:
            minutes = values["minutes"]["training"]
            for protocol, evaluation in values["evaluations"].items():
                counts = _counts(evaluation["episodes"])
                found.append(Result(values["cell"], values["seed"], protocol, counts, minutes))
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: no finished cell of a sweep ({error}); move it out of the folder") from error
    return sorted(found, key=lambda result: (result.protocol, result.cell, result.seed))


def _counts(episodes: Mapping[str, Sequence[Any]]) -> dict[str, tuple[int, int]]:
    """Successes and finished episodes by ``suite/task``; timeouts and crashes did not finish."""
    counts: dict[str, tuple[int, int]] = {}
    for key, (outcome, _) in episodes.items():
        task = "/".join(key.split("/")[:2])
        successes, finished = counts.get(task, (0, 0))
        counts[task] = successes + (outcome == "success"), finished + (outcome in ("success", "failure"))
    return dict(sorted(counts.items(), key=lambda item: (item[0].split("/")[0], int(item[0].split("/")[1]))))


def tables(results: Sequence[Result]) -> str:
    """Markdown: for each protocol a row per cell and seed, and below a row per cell over its seeds."""
    parts = []
    for protocol in dict.fromkeys(result.protocol for result in results):
        mine = [result for result in results if result.protocol == protocol]
        tasks = list(dict.fromkeys(task for result in mine for task in result.tasks))
        head = ["cell", "seed", "successes", "rate", "95 % interval", *tasks, "training, min"]
        rows = [_row(result, tasks) for result in mine]
        parts += [f"## {protocol}", "", *markdown(head, rows), "", *_over_seeds(mine), ""]
    return "\n".join(parts)


def _row(result: Result, tasks: Sequence[str]) -> list[str]:
    low, high = wilson(result.successes, result.episodes)
    counts = ["/".join(map(str, result.tasks[task])) if task in result.tasks else "" for task in tasks]
    return [
        result.cell,
        str(result.seed),
        f"{result.successes}/{result.episodes}",
        f"{100 * result.rate:.1f} %",
        f"{100 * low:.1f} to {100 * high:.1f}",
        *counts,
        f"{result.minutes:.1f}",
    ]


def _over_seeds(results: Sequence[Result]) -> list[str]:
    """A row per cell: the mean over seeds with Student's interval, for which the training is the unit that varies."""
    rows = []
    for cell in dict.fromkeys(result.cell for result in results):
        rates = np.array([result.rate for result in results if result.cell == cell])
        low, high = student_interval(rates)
        interval = "" if math.isnan(low) else f"{100 * max(low, 0.0):.1f} to {100 * min(high, 1.0):.1f}"
        rows.append([cell, str(len(rates)), f"{100 * rates.mean():.1f} %", interval])
    return markdown(["cell", "seeds", "mean rate", "95 % interval over seeds"], rows)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def figure(results: Sequence[Result]) -> str:
    """An SVG: success rates with Wilson's 95 % intervals, a row per evaluation."""
    height = 2 * MARGIN + ROW * (len(results) + 1)
    scale = WIDTH - LABEL - 3 * MARGIN

    def x(rate: float) -> str:
        return f"{LABEL + 2 * MARGIN + scale * rate:.1f}"

    parts = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        top, bottom = MARGIN, height - MARGIN - ROW
        parts.append(element("line", x1=x(tick), x2=x(tick), y1=top, y2=bottom, stroke=GREY, stroke_width="0.5"))
        label = f"{100 * tick:.0f} %"
        parts.append(element("text", label, x=x(tick), y=height - MARGIN, text_anchor="middle", fill=GREY))
    for number, result in enumerate(results):
        y = MARGIN + ROW * number + ROW // 2
        low, high = wilson(result.successes, result.episodes)
        name = f"{result.cell}, seed {result.seed}, {result.protocol}"
        parts.append(element("text", name, x=MARGIN, y=y + 4, fill=GREY))
        parts.append(element("line", x1=x(low), x2=x(high), y1=y, y2=y, stroke=INK, stroke_width="2"))
        parts.append(element("circle", cx=x(result.rate), cy=y, r=4, fill=INK))
    return str(
        element(
            "svg",
            *parts,
            xmlns="http://www.w3.org/2000/svg",
            viewBox=f"0 0 {WIDTH} {height}",
            font_family="sans-serif",
            font_size="11",
        )
    )
