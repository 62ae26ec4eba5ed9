"""The forms in which a latent store keeps its values: numbers, bits of bfloat16, or int8 with a scale per token.

Imports neither jax nor torch. numpy has no bfloat16, so its bits are kept as uint16; a training step takes all forms as
they are and decodes them on the device (:func:`wmjax.trainer.step.decode`).
"""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Float32

Packing = Literal["float16", "float32", "bfloat16", "int8"]
VALUES, SCALE = "latents", "scale"
"""Names of the packed arrays; only int8 has scales."""
STORED = {"float16": np.float16, "float32": np.float32, "bfloat16": np.uint16, "int8": np.int8}
"""The numpy type that holds the values of each form."""
LEVELS = 127
"""The largest absolute value of a token becomes this in int8."""


def layout(shape: tuple[int, ...], packing: Packing) -> dict[str, tuple[Any, tuple[int, ...]]]:
    """The numpy type and the shape of each packed array, for values of a shape ``[..., tokens, dim]``."""
    values = {VALUES: (STORED[packing], shape)}
    return {**values, SCALE: (np.float32, shape[:-1])} if packing == "int8" else values


def pack(values: Float[np.ndarray, "*n tokens dim"], packing: Packing) -> dict[str, np.ndarray]:
    """The arrays that hold the values, rounded to nearest. What is not finite stays so in :func:`unpack`."""
    with np.errstate(over="ignore", invalid="ignore"):
        if packing == "int8":
            most = np.abs(values).max(axis=-1).astype(np.float32)
            scale = np.where(most == 0, np.float32(1), most / np.float32(LEVELS))
            return {VALUES: np.rint(values / scale[..., None]).astype(np.int8), SCALE: scale}
        if packing == "bfloat16":
            return {VALUES: _bfloat16_bits(values.astype(np.float32))}
        return {VALUES: values.astype(STORED[packing])}


def unpack(arrays: Mapping[str, np.ndarray], packing: Packing) -> Float32[np.ndarray, "*n tokens dim"]:
    """The values that packed arrays hold."""
    values = arrays[VALUES]
    if packing == "int8":
        return values * arrays[SCALE][..., None]
    if packing == "bfloat16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


def _bfloat16_bits(values: Float32[np.ndarray, "*n"]) -> np.ndarray:
    """The upper half of each float32, rounded to nearest, halves to even; NaN stays NaN."""
    bits = values.view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)
