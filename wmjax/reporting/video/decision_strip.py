"""The strip of a policy's decisions below its video: the action chunk, and its numbers over time."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from wmjax.core.specs import ActionSpec
from wmjax.reporting.video.strip import LINE, hold, strip_font
from wmjax.rollout.decisions import Decided

CELL, LEFT = 12, 40
"""Side of a cell of the chunk, and width of the row names; pixels."""
PLOT, GAP, LABEL = 160, 12, 120
"""Width of a time line, space before it, width of its name; pixels."""
INK = {"blue": (88, 134, 255), "red": (255, 96, 84), "line": (190, 190, 190), "cursor": (255, 214, 10)}


def measured_by(name: str) -> str:
    """Name of the prediction error that a copy's error is compared with; empty for other numbers."""
    return name.removesuffix("/copy_error") + "/error" if name.endswith("/copy_error") else ""


def draw_decisions(
    decided: Sequence[Decided], frames: int, spec: ActionSpec
) -> UInt8[np.ndarray, "frames height width 3"]:
    """Draws one strip per frame of the video, which shows the newest decision up to that frame.

    The left part shows the chunk with a column per step: blue is a dimension's lower bound, black its middle, red its
    upper bound. The right part has a time line for each number over all decisions of the episode, from its lowest to
    its highest value, with a cursor at this decision and the value there. The error of a prediction shares the line and
    the scale of the error of a copy, which is blue.

    Args:
        decided: the episode's decisions in order, at least one.
        frames: of the video; those before the first decision show it too.
        spec: of the actions; without bounds their range in the episode takes their place.

    """
    names = list(dict.fromkeys(name for moment in decided for name in moment.numbers))
    series = {name: np.array([moment.numbers.get(name, np.nan) for moment in decided]) for name in names}
    every = np.concatenate([moment.actions for moment in decided])
    low, high = (np.array(spec.low), np.array(spec.high)) if spec.low else (every.min(0), every.max(0))
    shades = [(moment.actions - (low + high) / 2) / np.maximum((high - low) / 2, 1e-6) for moment in decided]
    drawn = [_draw(shade, spec.names, series, number) for number, shade in enumerate(shades)]
    return hold(drawn, [moment.frame for moment in decided], frames)


def _draw(
    shades: Float[np.ndarray, "steps action"], names: Sequence[str], series: Mapping[str, np.ndarray], now: int
) -> UInt8[np.ndarray, "height width 3"]:
    steps = len(shades)
    chunk_width = LEFT + steps * CELL
    copies = {measured_by(name): name for name in series if measured_by(name) in series}
    rows = [name for name in series if name not in copies.values()]
    lines = min(len(rows), len(names))
    width = chunk_width + (GAP + LABEL + PLOT if lines else 0)
    canvas = Image.new("RGB", (width, LINE + len(names) * CELL), "black")
    draw, font = ImageDraw.Draw(canvas), strip_font()
    draw.text((LEFT, 2), f"actions of {steps} steps", fill="white", font=font)
    for row, name in enumerate(names):
        draw.text((4, LINE + row * CELL), name, fill="white", font=font)
        for step, value in enumerate(shades[:, row]):
            corner = (LEFT + step * CELL, LINE + row * CELL)
            colour = INK["red"] if value > 0 else INK["blue"]
            shade = tuple(round(part * min(1.0, abs(float(value)))) for part in colour)
            draw.rectangle((*corner, corner[0] + CELL - 2, corner[1] + CELL - 2), fill=shade)
    if not lines:
        return np.asarray(canvas)
    height = len(names) * CELL // lines
    for number, name in enumerate(rows[:lines]):
        left, top = chunk_width + GAP, LINE + number * height
        drawn = [(series[name], INK["line"])] + ([(series[copies[name]], INK["blue"])] if name in copies else [])
        draw.text((left, top), name, fill="white", font=font)
        value = " / copy ".join(f"{values[now]:.3g}" for values, _ in drawn)
        draw.text((left, top + 11), value, fill=INK["cursor"], font=font)
        every = np.concatenate([values for values, _ in drawn])
        for values, ink in drawn:
            draw.line(_points(values, every, left + LABEL, top + 1, height - 4), fill=ink)
        cursor = left + LABEL + _place(now, len(series[name]))
        draw.line(((cursor, top), (cursor, top + height - 3)), fill=INK["cursor"])
    return np.asarray(canvas)


def _points(values: np.ndarray, every: np.ndarray, left: int, top: int, height: int) -> list[tuple[float, float]]:
    """The curve through the finite values, scaled to the range of ``every``; a constant lies in the middle."""
    known = np.flatnonzero(np.isfinite(values))
    if not len(known):
        return []
    low, high = np.nanmin(every), np.nanmax(every)
    share = (values - low) / (high - low) if high > low else np.full(len(values), 0.5)
    return [(left + _place(int(i), len(values)), top + (1 - float(share[i])) * height) for i in known]


def _place(number: int, count: int) -> float:
    return number / max(1, count - 1) * (PLOT - 1)
