"""Latent export with PyTorch: any Hugging Face V-JEPA 2 checkpoint, z(t) of every frame into a latent store.

python -m encoders_export.vjepa --data STORE --model mini|vitl|vitg|HUB_ID|FOLDER --out LATENTS
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from jaxtyping import Float32, UInt8

from encoders_export.blocks import encode_patches, patchify
from wmjax.core.command import run_command
from wmjax.core.errors import UserError
from wmjax.core.options import CommandParser
from wmjax.core.specs import EncoderSpec
from wmjax.data.latents import Backend
from wmjax.encoders.export import add_arguments, run
from wmjax.encoders.vjepa2.config import IMAGENET_MEAN, IMAGENET_STD, VJEPA2Config
from wmjax.encoders.vjepa2.encoder import VJEPA2, VJEPA2Settings
from wmjax.encoders.vjepa2.files import read_config, resolve_folder
from wmjax.encoders.vjepa2.rotary import rotary_table


def preprocess(frames: torch.Tensor, config: VJEPA2Config) -> torch.Tensor:
    """``VJEPA2VideoProcessor`` without torchvision: resize, round to 8 bits, centre crop, normalise.

    Args:
        frames: uint8 ``[batch, time, height, width, 3]``.
        config: gives resize edge and crop.

    Returns:
        float32 ``[batch, time, 3, crop, crop]``.

    """
    batch, time, height, width, _ = frames.shape
    pixels = frames.permute(0, 1, 4, 2, 3).flatten(0, 1).float()
    short = min(height, width)
    if short != config.resize:
        size = (config.resize * height // short, config.resize * width // short)  # the long edge is cut, not rounded
        pixels = torch.nn.functional.interpolate(pixels, size, mode="bilinear", antialias=True).round().clamp(0, 255)
    top, left = ((edge - config.image_size) // 2 for edge in pixels.shape[-2:])
    pixels = pixels[..., top : top + config.image_size, left : left + config.image_size] / 255.0
    mean, std = (torch.tensor(v, device=pixels.device)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    return ((pixels - mean) / std).unflatten(0, (batch, time))


def pool_last_tubelet(tokens: torch.Tensor, patches: int, grid: int) -> torch.Tensor:
    """The last tubelet's ``patches`` tokens, mean-pooled to ``grid`` x ``grid`` (0: not pooled)."""
    last = tokens[:, -patches:]
    if grid == 0:
        return last
    side = round(patches**0.5)
    cells = last.reshape(len(last), grid, side // grid, grid, side // grid, -1)
    return cells.mean(dim=(2, 4)).flatten(1, 2)


def load_model(folder: Path) -> Any:
    """The checkpoint's model in float32, in evaluation mode; the predictor may be absent (it is not used).

    Raises:
        UserError: encoder weights are missing, damaged, or of other shapes than the config's.

    """
    level, bar = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()  # it would warn of the unused predictor's missing weights
    transformers.logging.disable_progress_bar()
    try:
        loaded: Any = transformers.VJEPA2Model.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, use_safetensors=True
        )
    except Exception as error:  # safetensors, torch and transformers raise half a dozen kinds for a damaged file
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{folder}: PyTorch cannot load this checkpoint ({reason}); copy it again") from error
    finally:
        transformers.logging.set_verbosity(level)
        if bar:
            transformers.logging.enable_progress_bar()
    model, info = loaded
    missing = [name for name in info["missing_keys"] if name.startswith("encoder.")]
    if missing:
        raise UserError(f"{folder}: tensor {missing[0]} is missing; this is not a V-JEPA 2 checkpoint")
    return model.eval()


class Coming:
    """Latents that a GPU may still compute, on their way to pinned memory; ``np.asarray`` waits for them."""

    def __init__(self, latents: torch.Tensor) -> None:
        self._host = torch.empty(latents.shape, dtype=latents.dtype, pin_memory=True)
        self._host.copy_(latents, non_blocking=True)
        self._done = torch.cuda.Event()
        self._done.record()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The latents, once they are there."""
        self._done.synchronize()
        return self._host.numpy() if dtype is None else self._host.numpy().astype(dtype)


class TorchEncoder:
    """A Hugging Face V-JEPA 2 as an :class:`wmjax.encoders.base.Exporter`; on the GPU if there is one."""

    backend: Backend = "torch"

    def __init__(self, settings: VJEPA2Settings) -> None:
        """Loads ``settings.model``.

        Raises:
            UserError: unknown encoder, damaged weights, a grid that does not fit.

        """
        self.spec: EncoderSpec = VJEPA2.describe(settings)
        folder = resolve_folder(settings.model)
        self.config, self.grid = read_config(folder), settings.pooling_grid
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = load_model(folder)
        self.model.to(self.device)
        tokens = self.config.grid_size**2 * (settings.clip_length // self.config.tubelet_size)
        cos, sin = map(torch.from_numpy, rotary_table(self.config.head_dim, self.config.grid_size, tokens))
        self._table = cos[None, None].to(self.device), sin[None, None].to(self.device)

    @torch.inference_mode()
    def encode(
        self, clips: UInt8[np.ndarray, "batch time height width 3"]
    ) -> Float32[np.ndarray, "batch tokens dim"] | Coming:
        """z(t) of clips that end at t, on the host or on the way there."""
        _allow_tf32(self.spec.precision == "tf32")
        frames = torch.from_numpy(np.ascontiguousarray(clips))
        if self.device.type == "cuda":  # from pageable memory the copy would wait for the batch before
            frames = frames.pin_memory().to(self.device, non_blocking=True)
        tokens = self._features(preprocess(frames, self.config))
        latents = pool_last_tubelet(tokens, self.config.grid_size**2, self.grid)
        return Coming(latents) if self.device.type == "cuda" else latents.numpy()

    def _features(self, pixels: torch.Tensor) -> torch.Tensor:
        """The last layer's tokens: by the reference's forward pass, in bfloat16 by ours."""
        if self.spec.precision != "bfloat16":
            return self.model.get_vision_features(pixels)
        with torch.autocast(self.device.type, torch.bfloat16):
            return encode_patches(self.model.encoder, patchify(pixels, self.config), self._table)


def _allow_tf32(allowed: bool) -> None:
    """Lets GPUs round the operands of float32 products, those of convolutions included, or not."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status."""
    parser = CommandParser("vjepa", __doc__, package="encoders_export")
    add_arguments(parser)
    return run_command(lambda: run(*parser.read(arguments), TorchEncoder, backend="torch"))


if __name__ == "__main__":
    sys.exit(main())
