"""A picture of the Prophet's predictions: predicted beside actual latents and frames, one row per sample."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from wmjax.data.store import TrainingStore
from wmjax.diagnostics.imagined_frames import Imagined

CELL, GAP, LEFT, LINE = 96, 4, 176, 18
"""Side of a cell, space between cells, width of the row names, height of a line of text; pixels."""
BACKGROUND, INK, FAINT = (255, 255, 255), (20, 20, 20), (110, 110, 110)


def draw(imagined: Imagined, store: TrainingStore, camera: int) -> Image.Image:
    """The picture.

    Each sample has a row of what the camera saw at t, t+1, ..., the colours of the true and the predicted latents
    (one colour code for the whole picture), the training frames nearest to each predicted latent, and the one nearest
    to each true one.

    Args:
        imagined: the samples.
        store: whose frames they are.
        camera: index of the camera that the latents are of.

    """
    columns, near = imagined.frames.shape[1], imagined.nearest.shape[2]
    block = 2 * LINE + (4 + near) * (CELL + GAP) + 2 * GAP
    canvas = Image.new("RGB", (LEFT + columns * (CELL + GAP) + GAP, len(imagined.frames) * block + GAP), BACKGROUND)
    for sample in range(len(imagined.frames)):
        _sample(canvas, sample * block + GAP, imagined, sample, store, camera)
    return canvas


def _sample(canvas: Image.Image, top: int, imagined: Imagined, sample: int, store: TrainingStore, camera: int) -> None:
    """The block of one sample."""
    episode = store.episodes[int(store.frame_episode[imagined.frames[sample, 0]])]
    step = int(store.frame_step[imagined.frames[sample, 0]])
    _text(canvas, (GAP, top), f"episode {episode['index']}, control step {step}: {episode['instruction']}", INK)
    names = ["t", *(f"t+{k}, skill {skill:.2f}" for k, skill in enumerate(imagined.skill[sample], 1))]
    for column, name in enumerate(names):
        _text(canvas, (LEFT + column * (CELL + GAP), top + LINE), name, FAINT)
    blank: list[np.ndarray | None] = [None]
    rows: list[tuple[str, Sequence[np.ndarray | None]]] = [
        ("what the camera saw", list(store.frames[imagined.frames[sample], camera])),
        ("true latents", list(imagined.actual[sample])),
        ("predicted latents", list(imagined.predicted[sample])),
        *(
            (f"nearest to predicted, {rank + 1}", blank + list(store.frames[imagined.nearest[sample, :, rank], camera]))
            for rank in range(imagined.nearest.shape[2])
        ),
        ("nearest to the truth", blank + list(store.frames[imagined.nearest_true[sample], camera])),
    ]
    for number, (name, cells) in enumerate(rows):
        y = top + 2 * LINE + number * (CELL + GAP)
        _text(canvas, (GAP, y + CELL // 2 - LINE // 2), name, INK)
        for column, cell in enumerate(cells):
            if cell is not None:
                canvas.paste(_cell(cell), (LEFT + column * (CELL + GAP), y))


def _cell(pixels: UInt8[np.ndarray, "height width 3"]) -> Image.Image:
    """One frame, or one grid of colours (whose edges stay sharp), as a square."""
    enlarged = pixels.shape[0] < CELL // 2
    kind = Image.Resampling.NEAREST if enlarged else Image.Resampling.LANCZOS
    return Image.fromarray(np.ascontiguousarray(pixels)).resize((CELL, CELL), kind)


def _text(canvas: Image.Image, place: tuple[int, int], text: str, colour: tuple[int, int, int]) -> None:
    ImageDraw.Draw(canvas).text(place, text, fill=colour, font=ImageFont.load_default(size=11))
