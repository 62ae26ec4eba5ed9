"""Packed messages: MessagePack with numpy arrays, as openpi and its relatives send them, with limits.

An array travels as the map ``{b"__ndarray__": True, b"data": bytes, b"dtype": "<f4", b"shape": [2, 3]}``, a numpy
scalar as ``{b"__npgeneric__": True, b"data": value, b"dtype": "<f4"}``; these keys are bytes, all others text. This
is the format of ``openpi_client.msgpack_numpy``, which the tests compare it with. A message from a stranger is measured
before anything of it is built: :func:`measure` walks over the headers alone.
"""

import dataclasses
import functools
import math
import re
import sys
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np

from wmjax.core.errors import UserError

DTYPE = re.compile(r"[<>|=]?[biufUS][0-9]{1,6}")
"""Booleans, integers, floats and text; neither objects, void nor complex numbers."""
MAX_RANK = 8
NUMPY = (np.ndarray, np.generic)
ARRAY_KEYS = {b"__ndarray__", b"data", b"dtype", b"shape"}
SCALAR_KEYS = {b"__npgeneric__", b"data", b"dtype"}
SCALAR_TYPES: dict[str, tuple[type, ...]] = {
    "b": (bool,),
    "i": (int,),
    "u": (int,),
    "f": (int, float),
    "U": (str,),
    "S": (bytes,),
}
"""What the data of a numpy scalar of each kind may be."""
PAYLOAD = {0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}
"""Bytes that follow the header of a number."""
LENGTH = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
"""Width of the length that follows the header of bytes and of text."""
COUNT = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}
"""Width of the count that follows the header of an array and of a map, and values per entry."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """The limits of a message: its bytes, its nesting, and its values and keys."""

    size: int = 16 * 2**20
    depth: int = 8
    values: int = 4096


def pack(message: dict[str, Any]) -> bytes:
    """A message as bytes.

    Raises:
        ValueError: an array of objects, void or complex numbers.

    """
    return bytes(msgpack.packb(message, default=plain))


def unpack(
    frame: bytes,
    limits: Limits,
    rebuild: Callable[[dict[Any, Any]], Any] | None = None,
    *,
    finite: bool = True,
) -> dict[str, Any]:
    """Unpacks an untrusted message: a map with text keys, whose arrays are read-only.

    Args:
        frame: the bytes.
        limits: of the message.
        rebuild: turns every map into the value that it represents; openpi's arrays and scalars when None.
        finite: whether numbers must be finite.

    Raises:
        UserError: over a limit, damaged, not a map with text keys, a key twice, an array not of numbers or
            text, or a number that is not finite.

    """
    measure(frame, limits)
    try:
        message = msgpack.unpackb(frame, object_pairs_hook=lambda pairs: (rebuild or _rebuild)(_once(pairs)))
    except ValueError as error:
        raise UserError(f"the message is damaged ({str(error)[:80]}); send one packed map") from None
    if not isinstance(message, dict) or not all(isinstance(key, str) for key in message):
        raise UserError(f"the message is a {type(message).__name__}; send one packed map with text keys")
    if finite:
        _require_finite(message, "the message")
    return message


def measure(frame: bytes, limits: Limits) -> None:
    """Walks over a message's headers, without building anything.

    Raises:
        UserError: it is over a limit, ends too early or too late, or has an extension type.

    """
    if len(frame) > limits.size:
        raise UserError(f"the message has {len(frame)} bytes, the limit is {limits.size}; send fewer or smaller images")
    position, values, left = 0, 0, [1]
    while left:
        if not left[-1]:
            left.pop()
            continue
        left[-1] -= 1
        values += 1
        position, inside = _header(frame, position)
        if inside is not None:
            left.append(inside)
        if len(left) - 1 > limits.depth:
            raise UserError(f"the message is nested more than {limits.depth} deep; send a flat map")
        if values + (inside or 0) > limits.values:
            raise UserError(f"the message has more than {limits.values} values; send numbers as arrays")
    if position != len(frame):
        raise UserError(f"the message has {len(frame) - position} bytes after its end; send one packed map")


def _header(frame: bytes, position: int) -> tuple[int, int | None]:
    """The end of the value at a position, or the start of its first entry and the number of its values."""
    code = _number(frame, position, 1)
    position += 1
    if code in COUNT:
        width, each = COUNT[code]
        return position + width, each * _number(frame, position, width)
    if 0x80 <= code < 0xA0:
        return position, (code & 0x0F) * (2 if code < 0x90 else 1)
    if code in LENGTH:
        width = LENGTH[code]
        position += width + _number(frame, position, width)
    elif 0xA0 <= code < 0xC0:
        position += code & 0x1F
    elif code in PAYLOAD:
        position += PAYLOAD[code]
    elif 0xC0 < code < 0xE0 and code not in (0xC2, 0xC3):
        raise UserError(f"the message has a value of the type 0x{code:02x}; send maps, arrays, text, bytes and numbers")
    if position > len(frame):
        raise UserError(f"the message ends after {len(frame)} bytes in the middle of a value; send all of it")
    return position, None


def _number(frame: bytes, position: int, width: int) -> int:
    """A big-endian number of the header."""
    if position + width > len(frame):
        raise UserError(f"the message ends after {len(frame)} bytes in the middle of a value; send all of it")
    return int.from_bytes(frame[position : position + width], "big")


def plain(value: Any) -> Any:
    """The map that an array or numpy scalar travels as.

    Raises:
        ValueError: it cannot travel.

    """
    if isinstance(value, NUMPY) and value.dtype.kind in "VOc":
        raise ValueError(f"arrays of {value.dtype} cannot be packed")
    if isinstance(value, np.ndarray):
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    raise ValueError(f"a {type(value).__name__} cannot be packed")


def _once(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    """A map whose keys are all different."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise UserError("the message has a map with the same key twice; send each key once")
    return found


def _rebuild(found: dict[Any, Any]) -> Any:
    """A map, or the array or scalar that it represents."""
    if b"__ndarray__" in found:
        return read_array(found)
    if b"__npgeneric__" in found:
        return _scalar(found)
    return found


def read_array(found: dict[Any, Any]) -> np.ndarray:
    """The array that a map with the keys :data:`ARRAY_KEYS` represents.

    Raises:
        UserError: it does not represent one.

    """
    if set(found) != ARRAY_KEYS or not isinstance(found[b"data"], bytes):
        raise UserError("the message has an array without its keys __ndarray__, data, dtype, shape; pack it as openpi")
    dtype, shape = _dtype(found[b"dtype"]), found[b"shape"]
    if not isinstance(shape, list) or len(shape) > MAX_RANK or not all(type(n) is int and n >= 0 for n in shape):
        raise UserError(f"the message has an array of the shape {str(shape)[:60]}; send up to {MAX_RANK} sizes")
    if math.prod(shape) * dtype.itemsize != len(found[b"data"]):
        raise UserError(
            f"the message has an array with {len(found[b'data'])} bytes of data, but {dtype.str} of the shape "
            f"{str(shape)[:60]} has {math.prod(shape) * dtype.itemsize}; send all of it"
        )
    if dtype.kind == "U" and (np.frombuffer(found[b"data"], f"{dtype.str[0]}u4") > sys.maxunicode).any():
        raise UserError("the message has an array of text with a character beyond Unicode; send text as UTF-8")
    return np.ndarray(shape, dtype, buffer=found[b"data"])


def _scalar(found: dict[Any, Any]) -> np.generic:
    if set(found) != SCALAR_KEYS:
        raise UserError("the message has a scalar without its keys __npgeneric__, data, dtype; pack it as openpi does")
    dtype, value = _dtype(found[b"dtype"]), found[b"data"]
    if type(value) not in SCALAR_TYPES[dtype.kind]:
        raise UserError(
            f"the message has a {type(value).__name__} as scalar of the dtype {dtype.str}; send its own type"
        )
    try:
        with np.errstate(over="ignore"):  # becomes infinite, which is refused
            return dtype.type(value)  # type: ignore[no-any-return]
    except OverflowError:
        raise UserError(f"the message has a number that is too large for {dtype.str}; send a smaller one") from None


def _dtype(name: Any) -> np.dtype:
    dtype = _known_dtype(name) if isinstance(name, str) and len(name) <= 8 else None  # longer ones fill no cache
    if dtype is None:
        raise UserError(
            f"the message has an array of the dtype {str(name)[:40]!r}; send integers, floats, booleans or text"
        )
    return dtype


@functools.lru_cache(64)
def _known_dtype(name: str) -> np.dtype | None:
    """The dtype of a name; None for one that may not travel."""
    if not DTYPE.fullmatch(name):
        return None
    try:
        dtype = np.dtype(name)
    except TypeError:
        return None
    return dtype if dtype.itemsize else None


def _require_finite(value: Any, where: str) -> None:
    if isinstance(value, dict):
        for key, inside in value.items():
            _require_finite(inside, str(key)[:60])
    elif isinstance(value, list):
        for inside in value:
            _require_finite(inside, where)
    elif isinstance(value, NUMPY):
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise UserError(f"{where} has numbers that are not finite; send finite ones")
    elif isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{where} is {value}; send a finite number")
