"""Packed messages of vla-eval: MessagePack with arrays in maps with text keys, and encoded images.

An array travels as ``{"__ndarray__": True, "data": bytes, "dtype": "<f4", "shape": [2, 3]}``, an image also as
``{"__image__": True, "format": "png", "data": bytes, "shape": [256, 256, 3]}`` (png, jpeg, or raw with a dtype). This
is the format of ``vla_eval.protocol`` 0.8.0, which the tests compare it with. Images are decoded when they are used: a
message of a few kilobytes can hold hundreds of large ones.
"""

import dataclasses
import io
from typing import Any

import msgpack
import numpy as np
from jaxtyping import UInt8

from wmjax.core.errors import UserError
from wmjax.serving.packed import plain, read_array

PROTOCOL_VERSION = 1
NAMES = {"robot0_eye_in_hand": "wrist"}
"""What vla-eval's LIBERO benchmark calls our cameras, where the names differ."""
ARRAY, IMAGE = "__ndarray__", "__image__"
FORMATS = {"png": "PNG", "jpeg": "JPEG"}


@dataclasses.dataclass(frozen=True)
class EncodedImage:
    """An image that a client sent, not decoded yet."""

    format: str
    data: bytes
    shape: tuple[int, ...]

    def decode(self, name: str, largest: int) -> UInt8[np.ndarray, "height width 3"]:
        """The pixels.

        Args:
            name: of the image, for errors.
            largest: pixels a side at most; they are counted before anything is decoded.

        Raises:
            UserError: damaged, not RGB, larger, or of another shape than was said.

        """
        from PIL import Image

        try:
            with Image.open(io.BytesIO(self.data), formats=[FORMATS[self.format]]) as image:
                if max(image.size) > largest:
                    raise UserError(f"{name} has {image.size[0]}x{image.size[1]} pixels; send up to {largest} a side")
                if image.mode != "RGB" or self.shape != (image.size[1], image.size[0], 3):
                    raise UserError(f"{name} is {image.mode} of {image.size}, not RGB of the shape {list(self.shape)}")
                return np.asarray(image)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise UserError(f"{name} is a damaged {self.format} ({str(error)[:60]}); send it again") from None


def pack_text_keys(message: dict[str, Any]) -> bytes:
    """A message as bytes.

    Raises:
        ValueError: an array of objects, void or complex numbers.

    """
    return bytes(msgpack.packb(message, default=_plain))


def _plain(value: Any) -> Any:
    found = plain(value)
    if isinstance(value, np.generic):
        return found[b"data"]
    return {key.decode(): inside for key, inside in found.items()}


def arrays(found: dict[Any, Any]) -> Any:
    """A map, or the array or image that it represents.

    Raises:
        UserError: it represents neither.

    """
    if IMAGE in found:
        return _image(found)
    return read_array(_bytes_keys(found)) if ARRAY in found else found


def _bytes_keys(found: dict[Any, Any]) -> dict[Any, Any]:
    return {key.encode() if isinstance(key, str) else key: value for key, value in found.items()}


def _image(found: dict[Any, Any]) -> Any:
    if found.get("format") == "raw":
        raw = {key: value for key, value in found.items() if key not in (IMAGE, "format")}
        return read_array(_bytes_keys({**raw, ARRAY: True}))
    form, data, shape = found.get("format"), found.get("data"), found.get("shape")
    if set(found) != {IMAGE, "format", "data", "shape"} or form not in FORMATS or not isinstance(data, bytes):
        raise UserError("the message has an image without its keys __image__, format (raw, png, jpeg), data, shape")
    if not isinstance(shape, list) or len(shape) != 3 or not all(type(side) is int for side in shape):
        raise UserError(f"the message has an image of the shape {str(shape)[:60]}; send height, width, 3")
    return EncodedImage(form, data, tuple(shape))
