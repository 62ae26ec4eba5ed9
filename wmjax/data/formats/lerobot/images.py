"""Decoding and encoding of the two ways LeRobot stores images: PNG bytes in parquet, and MP4."""

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jaxtyping import Float64, UInt8

from wmjax.core.errors import UserError


def decode_image(content: bytes | None, where: str) -> UInt8[np.ndarray, "height width 3"]:
    """Decodes one PNG or JPEG to RGB.

    Raises:
        UserError: no bytes, or damaged ones.

    """
    from PIL import Image

    if not content:
        raise UserError(f"{where}: image bytes are missing; download the dataset again (external files are not read)")
    try:
        with Image.open(io.BytesIO(content)) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{where}: image cannot be decoded ({error}); download the dataset again") from error


def encode_png(image: UInt8[np.ndarray, "height width 3"]) -> bytes:
    """Encodes RGB as PNG, without loss."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, format="PNG")
    return buffer.getvalue()


def decode_video(path: Path, times: Float64[np.ndarray, "n"], fps: float) -> UInt8[np.ndarray, "n height width 3"]:
    """The frames of an MP4 at given times (s, increasing), matched to within half a frame.

    Raises:
        UserError: missing, truncated or damaged file, or no frame at one of the times.

    """
    import av

    found: list[np.ndarray] = []
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            container.seek(round(times[0] / float(stream.time_base or 1)), stream=stream)
            for frame in container.decode(stream):
                if len(found) == len(times):
                    break
                if abs((frame.time or 0.0) - times[len(found)]) < 0.5 / fps:
                    found.append(frame.to_ndarray(format="rgb24"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: missing; download the dataset again") from error
    except (av.error.FFmpegError, IndexError) as error:
        raise UserError(f"{path}: video is truncated or damaged ({error}); download the dataset again") from error
    if len(found) < len(times):
        raise UserError(f"{path}: no frame at {times[len(found)]:.3f} s, the video is truncated; download it again")
    return np.stack(found)


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
