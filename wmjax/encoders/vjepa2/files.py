"""The files of a V-JEPA 2 checkpoint and its identity. Imports neither jax nor torch."""

import re
from pathlib import Path
from typing import Any

from wmjax.core.errors import UserError
from wmjax.core.files import hash_files
from wmjax.core.paths import expand, listed
from wmjax.core.reading import read_json
from wmjax.core.specs import EncoderSpec, Precision
from wmjax.encoders.vjepa2.config import VJEPA2Config, from_hf_config

PUBLISHED = {"vitl": "facebook/vjepa2-vitl-fpc64-256", "vitg": "facebook/vjepa2-vitg-fpc64-256"}
"""Short names of published encoders, those of their presets, and their hub ids."""
MINI_FOLDER = Path(__file__).parent / "mini"
"""The pre-trained mini encoder that ships with wmjax (float16 on disk, float32 in use)."""


FIX = "copy the checkpoint again"
SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint folder, one or sharded: those that transformers loads, and no others."""
    whole = folder / "model.safetensors"
    shards = [path for path in listed(folder, "model-*-of-*.safetensors") if SHARD.fullmatch(path.name)]
    files = [whole] if whole.is_file() else shards
    if not (folder / "config.json").is_file() or not files:
        raise UserError(
            f"encoder folder {str(folder)!r} needs config.json and model.safetensors; pass 'mini', a downloaded "
            f"Hugging Face V-JEPA 2 checkpoint, or a folder made by encoders_export.pretrain"
        )
    return files


def read_config(folder: Path) -> VJEPA2Config:
    """The config of a checkpoint folder.

    Raises:
        UserError: missing or damaged files, or an unsupported architecture.

    """
    return from_hf_config(_read_json(folder), str(folder / "config.json"))


def _read_json(folder: Path) -> dict[str, Any]:
    """The content of a checkpoint folder's ``config.json``."""
    weight_files(folder)
    return read_json(folder / "config.json", dict[str, Any], FIX)


def weights_hash(folder: Path) -> str:
    """The first 16 hex digits of the SHA-256 over the checkpoint's weight files: the encoder's identity."""
    return hash_files(weight_files(folder), FIX)[:16]


def resolve_folder(name: str) -> Path:
    """The folder of an encoder: ``mini`` (shipped), ``vitl``, ``vitg``, an existing folder, or a Hugging Face hub id.

    Raises:
        UserError: no such folder and the hub cannot deliver it.

    """
    if name == "mini":
        return MINI_FOLDER
    name = PUBLISHED.get(name, name)
    if (folder := expand(name)).is_dir():
        return folder
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(name, allow_patterns=["config.json", "model*.safetensors"]))
    except Exception as error:
        raise UserError(
            f"encoder {name!r} is neither 'mini' nor a folder, and the Hugging Face hub did not deliver it "
            f"({type(error).__name__}); download it by hand and pass the folder as --encoder.model"
        ) from error


def encoder_spec(
    name: str, cameras: tuple[str, ...], grid: int = 4, clip_length: int = 4, precision: Precision = "float32"
) -> EncoderSpec:
    """The spec of latents made with an encoder: identity from its weight files, statistics still empty.

    Args:
        name: ``mini``, ``vitl``, ``vitg``, a folder, or a hub id.
        cameras: the cameras whose frames are encoded.
        grid: pooling grid; 0 keeps every token (recorded as the encoder's own grid).
        clip_length: frames per clip.
        precision: what the latents are computed in.

    Raises:
        UserError: no camera, unknown encoder, or a clip or grid that does not fit it.

    """
    if not cameras:
        raise UserError(
            "encoder.cameras names no camera, and no demonstrations are at hand that have a first one; name one"
        )
    name = PUBLISHED.get(name, name)
    folder = resolve_folder(name)
    config = read_config(folder)
    if clip_length < 1 or clip_length % config.tubelet_size:
        raise UserError(f"clip length {clip_length} is not a multiple of the encoder's tubelet {config.tubelet_size}")
    if grid < 0 or (grid and config.grid_size % grid):
        raise UserError(f"pooling grid {grid} does not divide the encoder's {config.grid_size}x{config.grid_size}")
    side = grid or config.grid_size
    return EncoderSpec(
        kind="vjepa2",
        name=folder.name if expand(name).is_dir() else name,
        weights_hash=weights_hash(folder),
        parameters={
            "revision": str(_read_json(folder).get("wmjax_revision", "published")),
            "resize": config.resize,
            "image_size": config.image_size,
            "pooling_grid": side,
        },
        clip_length=clip_length,
        cameras=cameras,
        tokens_per_frame=side**2 * len(cameras),
        dim=config.hidden_size,
        precision=precision,
    )
