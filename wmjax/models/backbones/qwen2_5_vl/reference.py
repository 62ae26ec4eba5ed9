"""Prompts as the published implementation takes them, for comparisons with it: patches and positions ready made."""

import functools

import jax
import numpy as np
from jaxtyping import Bool, Float32, Int32, UInt8

from wmjax.models.backbones.qwen2_5_vl.config import Qwen2_5_VLConfig
from wmjax.models.backbones.qwen2_5_vl.image import patchify


def reference_arrays(
    config: Qwen2_5_VLConfig,
    tokens: Int32[np.ndarray, "batch length"],
    mask: Bool[np.ndarray, "batch length"],
    positions: Int32[np.ndarray, "batch 3 length"],
    images: UInt8[np.ndarray, "batch cameras height width 3"],
) -> dict[str, np.ndarray]:
    """The arguments of ``transformers``' ``Qwen2_5_VLModel`` for square images, by name."""
    flat = images.reshape(-1, *images.shape[2:])
    side = flat.shape[1] // config.vision.patch
    return {
        "input_ids": tokens.astype(np.int64),
        "attention_mask": mask.astype(np.int64),
        "position_ids": np.ascontiguousarray(positions.transpose(1, 0, 2)),
        "pixel_values": _patches(flat, config),
        "image_grid_thw": np.array([[1, side, side]] * len(flat)),
    }


def _patches(
    images: UInt8[np.ndarray, "images height width 3"], config: Qwen2_5_VLConfig
) -> Float32[np.ndarray, "patches pixels"]:
    """Pixels in the order of the published processor, a still image repeated in time."""
    vision = config.vision
    cut = np.asarray(jax.jit(functools.partial(patchify, patch=vision.patch, merge=vision.merge))(images))
    cut = cut.reshape(-1, vision.channels, 1, vision.patch**2).repeat(vision.temporal_patch, 2)
    return np.ascontiguousarray(cut.reshape(-1, vision.patch_inputs))
