"""The parts that the strips below a video share: a strip shows a decision until the next one."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import ImageFont

LINE = 16
"""Height of the line above a strip that names its columns, pixels."""


def strip_font(size: int = 10) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font of a strip's texts."""
    return ImageFont.load_default(size=size)


def hold(
    drawn: Sequence[UInt8[np.ndarray, "height width 3"]], decided_at: Sequence[int], frames: int
) -> UInt8[np.ndarray, "frames height width 3"]:
    """The strip of the newest decision for every frame of a video.

    Args:
        drawn: a strip per decision, at least one.
        decided_at: the newest frame that each decision knew, ascending.
        frames: of the video; those before the first decision get its strip too.

    """
    newest = np.searchsorted(decided_at, np.arange(frames), side="right") - 1
    return np.stack([drawn[index] for index in newest.clip(0)])
