"""Charts as inline SVG, coloured by the page's style sheet so that they follow its light and dark theme."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from wmjax.reporting.html import Html, element, join, legend

Points = Sequence[tuple[float, float]]

BAR_WIDTH, BAR_HEIGHT, BAR_MARGIN = 168, 18, 6
WIDTH, HEIGHT = 360, 200
LEFT, RIGHT, TOP, BOTTOM = 42, 8, 8, 24
MARKED = 12
"""Lines with at most so many points show them."""


def interval_bar(value: float | None, interval: tuple[float, float], start: float = 0.0, end: float = 1.0) -> Html:
    """A value with its interval on a scale with three ticks.

    Args:
        value: None draws the interval alone.
        interval: its bounds; what lies outside the scale is cut off.
        start: the scale's left end.
        end: the scale's right end.

    """

    def x(position: float) -> str:
        inside = min(max((position - start) / (end - start), 0.0), 1.0)
        return f"{BAR_MARGIN + inside * (BAR_WIDTH - 2 * BAR_MARGIN):.1f}"

    middle = BAR_HEIGHT / 2
    ticks = (
        element("line", class_="tick", x1=x(t), x2=x(t), y1=3, y2=BAR_HEIGHT - 3)
        for t in (start, (start + end) / 2, end)
    )
    low, high = interval
    return element(
        "svg",
        element("line", class_="axis", x1=x(start), x2=x(end), y1=middle, y2=middle),
        *ticks,
        element("line", class_="interval", x1=x(low), x2=x(high), y1=middle, y2=middle),
        None if value is None else element("circle", class_="point", cx=x(value), cy=middle, r=4),
        class_="bar",
        viewBox=f"0 0 {BAR_WIDTH} {BAR_HEIGHT}",
        role="img",
        aria_label=f"95 % interval {100 * low:.1f} to {100 * high:.1f} %",
    )


def stacked_bar(parts: Mapping[str, int]) -> Html:
    """Counts as the parts of one bar; each name is the CSS class of its part. Empty parts are left out."""
    total, left, rectangles = sum(parts.values()), 0.0, []
    for name, count in parts.items():
        if count:
            width = 1000 * count / total
            title = element("title", f"{name}: {count}")
            box = {"x": f"{left:.1f}", "y": 0, "width": f"{width:.1f}", "height": 10}
            rectangles.append(element("rect", title, class_=name, **box))
            left += width
    label = ", ".join(f"{count} {name}" for name, count in parts.items() if count)
    return element(
        "svg", *rectangles, class_="stack", viewBox="0 0 1000 10", preserveAspectRatio="none", role="img",
        aria_label=label,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Series:
    """A line of a chart. ``color`` counts the style sheet's colours; None is the colour of text, for the main line."""

    name: str
    points: Points
    color: int | None
    dashed: bool = False

    @property
    def css(self) -> str:
        """Its CSS classes."""
        return ("ink" if self.color is None else f"c{self.color}") + (" dashed" if self.dashed else "")


def line_chart(series: Sequence[Series], label: str, floor: float = -math.inf, marker: float | None = None) -> Html:
    """Lines over training steps, on axes with round ticks.

    Args:
        series: at least one point among them.
        label: what assistive technology reads.
        floor: values below are drawn at the floor, so that a bad start does not flatten the rest.
        marker: a step to mark with a vertical line.

    """
    steps = [step for line in series for step, _ in line.points]
    values = [max(value, floor) for line in series for _, value in line.points]
    x_ticks, y_ticks = round_ticks(0.0, max(steps), 4), round_ticks(min(values), max(values), 5)
    low, high, last = min(*values, y_ticks[0]), max(*values, y_ticks[-1]), max(*steps, 1.0)

    def at(step: float, value: float) -> tuple[float, float]:
        inner_width, inner_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
        height = (max(value, floor) - low) / (high - low)
        return LEFT + inner_width * step / last, TOP + inner_height * (1 - height)

    parts = [_y_tick(at(0, tick)[1], tick) for tick in y_ticks] + [_x_tick(at(tick, low)[0], tick) for tick in x_ticks]
    if marker is not None and 0 <= marker <= last:
        x = f"{at(marker, low)[0]:.1f}"
        parts.append(element("line", class_="marker", x1=x, x2=x, y1=TOP, y2=HEIGHT - BOTTOM))
    parts += [_line(line, [at(*point) for point in line.points]) for line in series if line.points]
    return element("svg", *parts, class_="chart", viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=label)


def line_legend(series: Sequence[Series]) -> Html:
    """Names, line samples and last values, for below a chart."""
    return legend(_legend_entry(line) for line in series if line.points)


def round_ticks(low: float, high: float, count: int) -> list[float]:
    """About ``count`` round numbers that enclose [low, high] (steps of 1, 2 or 5 times a power of ten)."""
    span = high - low if high > low else max(abs(high), 1.0)
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= count)
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return [i * step for i in range(first, last + 1)]


def short_number(value: float) -> str:
    """At most three significant digits, thousands as ``k``, millions as ``M``."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return "0" if abs(value) < 1e-12 else f"{value:.3g}"


def _legend_entry(line: Series) -> tuple[Html, tuple[object, ...]]:
    sample = element("line", class_=f"line {line.css}", x1=0, x2=18, y1=5, y2=5)
    swatch = element("svg", sample, class_="swatch", viewBox="0 0 18 10", aria_hidden="true")
    return swatch, (f" {line.name} ", element("b", short_number(line.points[-1][1])))


def _line(line: Series, points: Points) -> Html:
    path = element("polyline", class_=f"line {line.css}", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in points))
    dots = (element("circle", class_=f"dot {line.css}", cx=f"{x:.1f}", cy=f"{y:.1f}", r=2) for x, y in points)
    return element("g", element("title", line.name), path, join(dots) if len(points) <= MARKED else None)


def _y_tick(y: float, value: float) -> Html:
    line = element("line", class_="rule", x1=LEFT, x2=WIDTH - RIGHT, y1=f"{y:.1f}", y2=f"{y:.1f}")
    return join((line, element("text", short_number(value), x=LEFT - 5, y=f"{y + 3:.1f}", text_anchor="end")))


def _x_tick(x: float, value: float) -> Html:
    if x > WIDTH - RIGHT + 0.5:
        return Html("")
    anchor = "middle" if x < WIDTH - RIGHT - 12 else "end"
    return element("text", short_number(value), x=f"{x:.1f}", y=HEIGHT - BOTTOM + 14, text_anchor=anchor)
