"""One episode as one SVG over one time axis: frames, latents as colours, action and state per dimension."""

import dataclasses
import io
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from einops import rearrange
from jaxtyping import Float32
from PIL import Image

from wmjax.core.specs import ActionSpec, ObservationSpec
from wmjax.data.episode import EpisodeData
from wmjax.data.statistics import closing
from wmjax.reporting.html import Html, data_uri, element, join
from wmjax.reporting.video.latent_colours import Colours

LEFT, PLOT, RIGHT = 124, 1024, 96
"""Widths of the row names, of the longest episode, and of the margin for the last frame and the rows' ranges."""
CURVE_HEIGHT, GAP, AXIS_HEIGHT = 34, 8, 18
SMALLEST_LATENT = 36
"""Side of a frame's latents, pixels, below which only every n-th frame's are shown."""
FRAME_PIXELS = 160
"""Frames larger than this are made smaller before they are embedded."""
TICK_SECONDS = 1.0

Range = tuple[float, float]
Block = tuple[float, Html]
"""Height and SVG of a part of the figure, which is drawn from y = 0 downwards and from time 0 to the right."""


@dataclasses.dataclass(frozen=True)
class Line:
    """One curve; ``stepwise`` values last until the next control step (commands), others are joined (measurements)."""

    style: str
    values: Float32[np.ndarray, " n"]
    stepwise: bool = False


@dataclasses.dataclass(frozen=True)
class Row:
    """Curves that share a vertical range; the last one is drawn on top."""

    name: str
    lines: tuple[Line, ...]
    symmetric: bool = False

    @property
    def range(self) -> Range:
        """Smallest and largest value; around zero for commands."""
        low = min(float(line.values.min()) for line in self.lines)
        high = max(float(line.values.max()) for line in self.lines)
        return (-max(-low, high), max(-low, high)) if self.symmetric else (low, high)


@dataclasses.dataclass(frozen=True)
class Scale:
    """The scale that all episodes of a page share, so that they can be compared.

    Attributes:
        step: pixels per control step.
        ranges: of every row by name.

    """

    step: float
    ranges: dict[str, Range]


def rows(episode: EpisodeData, spec: ObservationSpec, action: ActionSpec) -> list[Row]:
    """The figure's curves: every dimension of the action, then the state's, with the two fingers in one row."""
    commands = [
        Row(f"action {name}", _commands(episode, i), symmetric=bool(action.hold)) for i, name in enumerate(action.names)
    ]
    states = [
        Row(f"state {name}", (Line("state", episode.state[:, i]),))
        for i, name in enumerate(spec.state)
        if i not in spec.fingers
    ]
    fingers = tuple(Line("state", episode.state[:, i]) for i in spec.fingers)
    return [*commands, *states, *([Row("fingers", fingers)] if fingers else [])]


def is_perturbed(episode: EpisodeData) -> bool:
    """Whether any executed action differs from its label."""
    return not np.array_equal(episode.action, episode.executed)


def _commands(episode: EpisodeData, index: int) -> tuple[Line, ...]:
    label = Line("label", episode.action[:, index], stepwise=True)
    if not is_perturbed(episode):
        return (label,)
    return (Line("executed", episode.executed[:, index], stepwise=True), label)


def shared_scale(episodes: Sequence[EpisodeData], spec: ObservationSpec, action: ActionSpec) -> Scale:
    """The scale in which the longest episode and the largest values fit."""
    ranges: dict[str, Range] = {}
    for row in (row for episode in episodes for row in rows(episode, spec, action)):
        low, high = ranges.get(row.name, row.range)
        ranges[row.name] = (min(low, row.range[0]), max(high, row.range[1]))
    longest = max(episode.length for episode in episodes)
    return Scale(min(PLOT / longest, RIGHT / spec.frame_stride), ranges)


def timeline(
    episode: EpisodeData,
    scale: Scale,
    spec: ObservationSpec,
    action: ActionSpec,
    colours: Mapping[str, Colours],
) -> Html:
    """The figure.

    Args:
        episode: what to show.
        scale: from :func:`shared_scale` over an equal or larger set of episodes.
        spec: the store's observations.
        action: the store's actions.
        colours: of the latents of every frame, by the name of their row; may be empty.

    """
    frame_width = scale.step * spec.frame_stride
    blocks = [_axis(episode.length, scale.step, spec.control_hz), *_frames(episode, spec, scale.step, frame_width)]
    blocks += [_latents(painted, episode, scale.step, frame_width, name) for name, painted in colours.items()]
    top = sum(height + GAP for height, _ in blocks)
    blocks += [_curves(row, scale) for row in rows(episode, spec, action)]
    height = sum(height + GAP for height, _ in blocks)
    back = _gripper_closed(episode, action, scale.step, top, height - GAP)
    front = _success(episode, scale.step, height - GAP)
    return element(
        "svg",
        element("g", back, _stack(blocks), front, transform=f"translate({LEFT} 0)"),
        class_="timeline",
        viewBox=f"0 0 {LEFT + PLOT + RIGHT} {height:g}",
        role="img",
        aria_label=f"Frames, actions and state of {episode.length} control steps",
    )


def _stack(blocks: Iterable[Block]) -> Html:
    """Blocks below one another."""
    parts, y = [], 0.0
    for height, body in blocks:
        parts.append(element("g", body, transform=f"translate(0 {y:g})"))
        y += height + GAP
    return join(parts)


def _axis(length: int, step: float, control_hz: float) -> Block:
    """Control steps, one tick per second."""
    every = max(1, round(TICK_SECONDS * control_hz))
    ticks = (element("text", i, class_="tick", x=f"{i * step:.1f}", y=13) for i in range(0, length + 1, every))
    return AXIS_HEIGHT, join([_name("control step", AXIS_HEIGHT), *ticks])


def _frames(episode: EpisodeData, spec: ObservationSpec, step: float, frame_width: float) -> list[Block]:
    """One strip per camera; every frame's left edge is at its control step."""
    every = max(1, int(RIGHT / frame_width + 1e-6))
    images = episode.images[::every]
    side = frame_width * every
    pixels = min(FRAME_PIXELS, spec.image_size)
    blocks = []
    for camera, name in enumerate(spec.cameras):
        strip = Image.fromarray(rearrange(np.asarray(images[:, camera]), "f h w c -> h (f w) c"))
        if pixels < spec.image_size:
            strip = strip.resize((pixels * len(images), pixels), Image.Resampling.LANCZOS)
        x, width = episode.frame_step[0] * step, side * len(images)
        picture = image(encode_image(strip, "JPEG"), x, width, side, f"frames of {name}")
        blocks.append((side, join([_name(name, side, _every(every)), picture])))
    return blocks


def _latents(colours: Colours, episode: EpisodeData, step: float, frame_width: float, name: str) -> Block:
    """Every frame's grid of latents at its control step, with a gap to the next; cameras are stacked vertically."""
    rows, columns = colours.shape[1:3]
    every = max(1, math.ceil(max(SMALLEST_LATENT, 6 * columns) / frame_width))
    side, tints = frame_width * every, colours[::every]
    cell = max(1, 32 // columns)
    gap = max(1, round(columns * cell * 0.06))
    tiles = np.zeros((len(tints), rows * cell + gap, columns * cell + gap, 4), np.uint8)
    tiles[:, :-gap, :-gap, :3] = tints.repeat(cell, 1).repeat(cell, 2)
    tiles[:, :-gap, :-gap, 3] = 255
    strip = Image.fromarray(rearrange(tiles, "f h w c -> h (f w) c"))
    x, width, height = episode.frame_step[0] * step, side * len(tints), side * tiles.shape[1] / tiles.shape[2]
    picture = image(encode_image(strip, "PNG"), x, width, height, name)
    return height, join([_name(name, height, _every(every)), picture])


def _curves(row: Row, scale: Scale) -> Block:
    """One row of curves in a box, its range at the right."""
    low, high = scale.ranges[row.name]
    width = max(len(line.values) for line in row.lines) * scale.step
    centre = _height(0.0, low, high)
    box = element("rect", class_="box", width=f"{width:.1f}", height=CURVE_HEIGHT)
    zero = element("path", class_="zero", d=f"M0 {centre:.1f}H{width:.1f}") if low < 0 < high else None
    paths = (element("path", class_=line.style, d=_path(line, low, high, scale.step)) for line in row.lines)
    texts = (
        element("text", f"{value:.3g}", class_="range", x=f"{width + 6:.1f}", y=y)
        for value, y in ((high, 9), (low, CURVE_HEIGHT - 1))
    )
    return CURVE_HEIGHT, join([_name(row.name, CURVE_HEIGHT), box, zero, *paths, *texts])


def _height(value: float, low: float, high: float) -> float:
    """The height of a value in a row, pixels from its top; the middle if the range is empty."""
    share = (value - low) / (high - low) if high > low else 0.5
    return 2 + (1 - share) * (CURVE_HEIGHT - 4)


def _path(line: Line, low: float, high: float, step: float) -> str:
    heights = [_height(float(value), low, high) for value in line.values]
    if line.stepwise:
        return f"M0 {heights[0]:.1f}" + "".join(f"V{y:.1f}H{(i + 1) * step:.1f}" for i, y in enumerate(heights))
    return "M" + "L".join(f"{i * step:.1f} {y:.1f}" for i, y in enumerate(heights))


def _gripper_closed(episode: EpisodeData, action: ActionSpec, step: float, top: float, bottom: float) -> Html:
    """Shades the time in which the executed command of any gripper is "close"."""
    closed = np.concatenate([[False], closing(episode.executed, action).any(-1), [False]])
    edges = np.flatnonzero(np.diff(closed.astype(np.int8))).reshape(-1, 2)
    vertical = {"y": f"{top:g}", "height": f"{bottom - top:g}"}
    return join(
        element("rect", class_="closed", x=f"{a * step:.1f}", width=f"{(b - a) * step:.1f}", **vertical)
        for a, b in edges.tolist()
    )


def _success(episode: EpisodeData, step: float, bottom: float) -> Html | None:
    """A line at the control step after which the task was done for the first time."""
    success = episode.meta.get("success_step")
    if success is None:
        return None
    return element("path", class_="success", d=f"M{success * step:.1f} {AXIS_HEIGHT}V{bottom:g}")


def _name(name: str, height: float, note: str = "") -> Html:
    """A row's name at its left, and a note below."""
    y = height / 2 + 4 - (7 if note else 0)
    below = element("text", note, class_="note", x=-8, y=f"{y + 14:g}") if note else None
    return join([element("text", name, class_="name", x=-8, y=f"{y:g}"), below])


def _every(every: int) -> str:
    return "every frame" if every == 1 else f"1 of {every} frames"


def image(data: str, x: float, width: float, height: float, label: str) -> Html:
    """An SVG image, stretched to its box."""
    box = {"x": f"{x:.1f}", "width": f"{width:.1f}", "height": f"{height:.1f}"}
    return element("image", href=data, **box, preserveAspectRatio="none", aria_label=label)


def encode_image(picture: Image.Image, kind: str) -> str:
    """A JPEG or PNG as data URI."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, quality=85, optimize=True)
    return data_uri(buffer.getvalue(), f"image/{kind.lower()}")
