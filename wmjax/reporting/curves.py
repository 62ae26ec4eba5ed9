"""Training curves of a run's ``metrics.jsonl`` as charts."""

import dataclasses
import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from wmjax.core.settings import is_number
from wmjax.reporting.charts import Series, line_chart, line_legend
from wmjax.reporting.html import Html, element

MAX_POINTS = 400
"""Longer curves are thinned out to about this many points."""
R2_FLOOR = -1.0
"""Smaller values of R² are drawn at this value, because an untrained policy can be arbitrarily bad."""


@dataclasses.dataclass(frozen=True)
class Metrics:
    """The metrics of a run: per split and name, (step, value) in order of steps; and the number of unreadable lines.

    ``names`` are those of the action's dimensions, if they are known.
    """

    curves: dict[tuple[str, str], list[tuple[float, float]]]
    damaged: int
    names: tuple[str, ...] = ()

    def get(self, split: str, name: str) -> list[tuple[float, float]]:
        """A curve, thinned out; empty if it was not measured."""
        points = self.curves.get((split, name), [])
        stride = max(1, math.ceil(len(points) / MAX_POINTS))
        return points[::-1][::stride][::-1]  # keeps the last point

    def numbered(self, split: str, prefix: str) -> list[tuple[int, list[tuple[float, float]]]]:
        """All curves ``<prefix><number>`` of a split, by number."""
        names = (re.fullmatch(re.escape(prefix) + r"(\d+)", name) for s, name in self.curves if s == split)
        return [(n, self.get(split, f"{prefix}{n}")) for n in sorted(int(match[1]) for match in names if match)]


def read_metrics(path: Path) -> Metrics:
    """Reads ``metrics.jsonl``; a missing file is an empty one.

    A killed run leaves an incomplete line and, once resumed, some steps twice. Incomplete lines are counted, and of
    equal steps the last one is used. Values that are not finite are left out.
    """
    latest: dict[tuple[str, str], dict[float, float]] = {}
    damaged = 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            values = json.loads(line)
            step, split = float(values["step"]), str(values["split"])
        except (ValueError, TypeError, KeyError, OverflowError):
            damaged += 1
            continue
        for name, value in values.items():
            if is_number(value) and name not in ("step", "time"):
                latest.setdefault((split, name), {})[step] = float(value)
    return Metrics({key: sorted(points.items()) for key, points in latest.items()}, damaged)


def curves(metrics: Metrics, marker: float | None = None) -> tuple[list[Html], list[str]]:
    """A figure per panel that has data, and the titles of the panels that have none.

    Args:
        metrics: of the run.
        marker: the step of the evaluated checkpoint.

    """
    figures: list[Html] = []
    missing: list[str] = []
    for panel in PANELS:
        series = [line for line in panel.lines(metrics) if line.points]
        if series:
            figures.append(_figure(panel, series, marker))
        else:
            missing.append(panel.title)
    return figures, missing


@dataclasses.dataclass(frozen=True)
class _Panel:
    title: str
    note: str
    lines: Callable[[Metrics], list[Series]]
    floor: float = -math.inf


def _figure(panel: _Panel, series: Sequence[Series], marker: float | None) -> Html:
    cut = any(value < panel.floor for line in series for _, value in line.points)
    note = panel.note + (f" Values below {panel.floor:g} are drawn at {panel.floor:g}." if cut else "")
    chart = line_chart(series, f"{panel.title} over training steps", panel.floor, marker)
    caption = element("figcaption", note)
    return element("figure", element("h3", panel.title), chart, line_legend(series), caption, class_="card")


def _loss(metrics: Metrics) -> list[Series]:
    return [
        Series("training", metrics.get("train", "loss"), 0),
        Series("validation", metrics.get("val", "loss"), 1),
    ]


def _r2(metrics: Metrics) -> list[Series]:
    names = dict(enumerate(metrics.names))
    lines = [Series(names.get(i, f"dimension {i}"), points, i % 8) for i, points in metrics.numbered("val", "r2/")]
    return [*lines, Series("arm mean", metrics.get("val", "r2_arm"), None)]


def _skill(metrics: Metrics) -> list[Series]:
    split = "val" if metrics.numbered("val", "world/skill_") else "train"
    return [Series(f"t+{k}", points, (k - 1) % 8) for k, points in metrics.numbered(split, "world/skill_")]


def _memory(metrics: Metrics) -> list[Series]:
    return [
        Series("gate, training", metrics.get("train", "memory/gate"), 0),
        Series("gate, validation", metrics.get("val", "memory/gate"), 0, dashed=True),
        Series("injected ratio, training", metrics.get("train", "memory/ratio"), 1),
        Series("injected ratio, validation", metrics.get("val", "memory/ratio"), 1, dashed=True),
    ]


def _variance(metrics: Metrics) -> list[Series]:
    return [
        Series("change, training", metrics.get("train", "world/change_ratio"), 0),
        Series("change, validation", metrics.get("val", "world/change_ratio"), 0, dashed=True),
        Series("latents, training", metrics.get("train", "world/variance_ratio"), 1),
        Series("latents, validation", metrics.get("val", "world/variance_ratio"), 1, dashed=True),
    ]


PANELS = (
    _Panel("Loss", "Total loss. Validation: averaged parameters on held-out episodes.", _loss),
    _Panel(
        "R² per action dimension",
        "Held-out episodes. 0 is what the mean action scores, 1 is perfect.",
        _r2,
        floor=R2_FLOOR,
    ),
    _Panel(
        "World-model skill per horizon",
        "1 - |error|² / |error of a copy|² of the predicted latents, per future frame. 0 is what copying the present "
        "latent scores.",
        _skill,
        floor=R2_FLOOR,
    ),
    _Panel(
        "Memory gate and injected ratio",
        "Mean |tanh gate|, and the norm of what is injected over that of the hidden state. 0 means that the policy "
        "ignores its world memory.",
        _memory,
    ),
    _Panel(
        "Variance of the prediction",
        "Of the predicted latents and of their change since the present, over that of the true ones; mean over the "
        "future frames. Near 0 the prediction has collapsed; a Prophet that adds to the present shows it in the change "
        "only.",
        _variance,
    ),
)
