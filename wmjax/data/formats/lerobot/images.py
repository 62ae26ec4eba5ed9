"""Decoding and encoding of the two ways LeRobot stores images: PNG bytes in parquet, and MP4."""

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, UInt8

from wmjax.core.errors import UserError
from wmjax.core.reading import reading

COLOUR_MODES = ("RGB", "RGBA", "L", "P")
"""PIL's modes of 8 bits per channel; 16-bit ones would be clipped."""
NEAR = 0.25
"""How far a video's frame may lie from its row, as a share of the time between two rows."""


def decode_image(content: bytes | None, where: str) -> UInt8[np.ndarray, "height width 3"]:
    """Decodes one PNG or JPEG to RGB.

    Raises:
        UserError: no bytes, damaged ones, or an image of other than 8-bit colours, such as depth.

    """
    from PIL import Image

    if not content:
        raise UserError(f"{where}: image bytes are missing; download the dataset again (external files are not read)")
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.mode not in COLOUR_MODES:
                raise UserError(
                    f"{where}: image has mode {image.mode}, 8-bit colours are read; if the column is a depth "
                    "camera, choose a layout without it"
                )
            return np.asarray(image.convert("RGB"))
    except UserError:
        raise
    except Exception as error:  # every decoder of PIL has its own kinds
        raise UserError(f"{where}: image cannot be decoded ({error}); download the dataset again") from error


def encode_png(image: UInt8[np.ndarray, "height width 3"]) -> bytes:
    """Encodes RGB as PNG, without loss."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, format="PNG")
    return buffer.getvalue()


def decode_video(
    path: Path,
    start: float,
    times: Float64[np.ndarray, " rows"],
    rows: np.ndarray,
    step: float,
    frames: int | None = None,
) -> UInt8[np.ndarray, "n height width 3"]:
    """The frames of some rows of an episode from an MP4.

    A row's frame is the one at its time, and as many frames after the first one as it is rows after the first row:
    a video of another rate, or with frames left out, is found out. A video whose clock begins later than at 0, as
    some encoders' do, counts from its first frame.

    Args:
        path: of the MP4.
        start: of the episode in it (s).
        times: of all rows, from the episode's start (s).
        rows: the requested rows, increasing.
        step: time between two rows (s).
        frames: that the file has if it is this episode's alone; None if it may have others.

    Raises:
        UserError: missing or damaged file, another number of frames than rows, or frames that are not those of the
            rows.

    """
    import av

    with reading(path, "download the dataset again"), av.open(str(path.absolute())) as container:
        stream = container.streams.video[0]
        _require_frames(path, stream, start, len(times), step)
        if frames is not None and stream.frames > frames:
            raise UserError(
                f"{path}: {stream.frames} frames for {frames} rows; rows were cut off, and nothing says at which end: "
                "encode the frames of the rows that are left"
            )
        return np.stack(_matching(path, container, stream, start + times[rows], rows, step))


def _require_frames(path: Path, stream: Any, start: float, rows: int, step: float) -> None:
    """Refuses a video of depth, or one with fewer frames than rows."""
    if ((stream.format and stream.format.name) or "").startswith("gray1"):
        raise UserError(f"{path}: frames are {stream.format.name}, a depth camera's; choose a layout without it")
    needed = round(start / step) + rows
    if 0 < stream.frames < needed:
        raise UserError(
            f"{path}: {stream.frames} frames for rows {needed - rows} to {needed - 1}; the video is truncated, "
            "or is not of these rows: download it again"
        )


def _matching(
    path: Path, container: Any, stream: Any, times: Float64[np.ndarray, " n"], rows: np.ndarray, step: float
) -> list[np.ndarray]:
    """The frames at some times, after checking how many frames lie between them."""
    base = float(stream.time_base or 1)
    first = float(stream.start_time or 0) * base
    container.seek(round((times[0] + first - NEAR * step) / base), stream=stream)
    found: list[np.ndarray] = []
    number = 0
    for frame in container.decode(stream):
        time = (frame.time or 0.0) - first
        due = times[len(found)]
        if found:
            number += 1
        if time > due + NEAR * step:
            break
        if abs(time - due) <= NEAR * step:
            if number != rows[len(found)] - rows[0]:
                break
            found.append(frame.to_ndarray(format="rgb24"))
            if len(found) == len(times):
                return found
    row = int(rows[len(found)])
    raise UserError(
        f"{path}: no frame for row {row} at {times[len(found)]:.3f} s, a row every {step:.4g} s; the video has another "
        f"rate ({float(stream.average_rate or 0):.4g} fps) or clock than the rows, or lacks frames: encode it again"
    )


def stack_images(images: Iterable[np.ndarray], size: tuple[int, int], where: str) -> np.ndarray:
    """Stacks decoded images after checking that all have the size the metadata promises.

    Raises:
        UserError: names the first image of another size.

    """
    checked = []
    for number, image in enumerate(images):
        if image.shape[:2] != size:
            raise UserError(
                f"{where}: image {number} is {image.shape[0]}x{image.shape[1]}, meta/info.json says "
                f"{size[0]}x{size[1]}; download the dataset again or correct its metadata"
            )
        checked.append(image)
    return np.stack(checked)
