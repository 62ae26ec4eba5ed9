"""The strip of the Prophet's predictions below a video: predicted latents above the true ones, and nearest frames."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from wmjax.reporting.video.latent_colours import LatentColours, on_grid
from wmjax.reporting.video.nearest_frames import Album
from wmjax.reporting.video.strip import LINE, hold, strip_font
from wmjax.rollout.decisions import Imagined

CELL, GAP, LEFT = 48, 4, 66
"""Side of a cell, space between cells, and width of the row names; pixels."""
UNKNOWN = 40
"""Grey level of a cell whose true latent no decision reported: the frame came after the last one, or between two."""


def draw_strips(
    imagined: Sequence[Imagined], frames: int, album: Album | None = None
) -> UInt8[np.ndarray, "frames height width 3"]:
    """Draws one strip per frame of the video, which shows the newest decision up to that frame.

    Columns are the frames t, t+1, ... counted from the decision's frame. The first row shows the predicted latents, the
    second the true ones, which later decisions report, and the third the training frames whose latents are nearest to
    the predicted ones. Colours are principal components of the episode's latents minus their mean at the same place of
    the grid, so that whatever never changes is grey.

    Args:
        imagined: the episode's decisions in order, at least one.
        frames: of the video; those before the first decision show it too.
        album: where the nearest training frames are found; without it that row is left out.

    """
    # At the start of an episode the history repeats the first frame; these copies have no place in the video.
    true = {m.frame - back: z for m in imagined for back, z in enumerate(m.observed[::-1]) if m.frame >= back}
    truth = np.stack(list(true.values()))
    place = truth.mean(0)
    colour = LatentColours.fit(truth - place)
    drawn = []
    for moment in imagined:
        latents = moment.latents
        came = [true.get(moment.frame + ahead) for ahead in range(len(latents))]
        rows = {"predicted": list(latents), "came": came}
        cells = {name: [None if z is None else colour(on_grid(z - place)) for z in row] for name, row in rows.items()}
        if album is not None:
            cells["nearest"] = list(album.look_up(latents))
        drawn.append(_draw(cells))
    return hold(drawn, [moment.frame for moment in imagined], frames)


def _draw(rows: dict[str, list[UInt8[np.ndarray, "_ _ 3"] | None]]) -> UInt8[np.ndarray, "height width 3"]:
    """The rows with their names; colours are enlarged, pictures made smaller."""
    columns = len(rows["predicted"])
    size = (LEFT + columns * (CELL + GAP), LINE + len(rows) * (CELL + GAP))
    canvas = Image.new("RGB", size, "black")
    draw, font = ImageDraw.Draw(canvas), strip_font(11)
    for column in range(columns):
        draw.text((LEFT + column * (CELL + GAP), 1), f"t+{column}" if column else "t", fill="white", font=font)
    for number, (name, row) in enumerate(rows.items()):
        top = LINE + number * (CELL + GAP)
        draw.text((4, top + CELL // 2 - 6), name, fill="white", font=font)
        for column, cell in enumerate(row):
            pixels = np.full((1, 1, 3), UNKNOWN, np.uint8) if cell is None else cell
            how = Image.Resampling.NEAREST if len(pixels) < CELL else Image.Resampling.LANCZOS
            canvas.paste(Image.fromarray(pixels).resize((CELL, CELL), how), (LEFT + column * (CELL + GAP), top))
    return np.asarray(canvas)
