"""Published weights under a policy network: its backbone's base parameters, by path, onto their devices."""

import dataclasses
import hashlib
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array

from wmjax.core.errors import UserError
from wmjax.models.backbones.qwen2_5_vl import names, weights
from wmjax.models.backbones.qwen2_5_vl.config import Qwen2_5_VLConfig, load_hf_config
from wmjax.models.backbones.qwen2_5_vl.prompt import TOKENIZER

BACKBONE = "backbone"
"""The attribute of :class:`wmjax.models.vla.VLA` that holds the vision-language model."""


def backbone_folder(name: str, setting: str = "train.backbone_weights") -> Path:
    """The folder of a backbone: an existing one, or a Hugging Face hub id, downloaded once.

    Raises:
        UserError: no such folder and the hub does not deliver it.

    """
    if Path(name).is_dir():
        return Path(name)
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        raise UserError(f"{setting} {name!r} is neither a folder nor a hub id such as Qwen/Qwen2.5-VL-3B-Instruct")
    return weights.download(name)


def backbone_hash(folder: Path) -> str:
    """The first 16 hex digits of the SHA-256 over a backbone's safetensors: which base a policy was trained on."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            while block := file.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()[:16]


def require_tokenizer(folder: Path, prompts: Path) -> None:
    """Checks that a backbone gets the tokens that it was trained on, if its folder holds its tokenizer.

    Args:
        folder: of the backbone.
        prompts: folder of the tokenizer that makes the prompts.

    Raises:
        UserError: the two tokenizers differ.

    """
    own, other = folder / TOKENIZER, prompts / TOKENIZER
    if own.is_file() and own.read_bytes() != other.read_bytes():
        raise UserError(f"{own} is not {other}, which makes the prompts; set prompt.tokenizer to {folder}")


def require_architecture(folder: Path, config: Qwen2_5_VLConfig) -> None:
    """Checks that tensors which fit by their shapes also compute the same function: heads, windows, rotation, ...

    Raises:
        UserError: the checkpoint's ``config.json`` and the config differ; names the field and both values.

    """
    theirs, ours = _architecture(load_hf_config(folder)), _architecture(config)
    for name, value in theirs.items():
        if value != ours[name]:
            raise UserError(
                f"{folder} has {name} = {value}, model.backbone has {ours[name]}; take weights and sizes from one model"
            )


def _architecture(config: Qwen2_5_VLConfig) -> dict[str, Any]:
    """What the function depends on: not adapters, dtypes or how it is run."""
    parts = {part: dataclasses.asdict(getattr(config, part)) for part in ("vision", "text")}
    fields = {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}
    return fields | {name: getattr(config, name) for name in ("tied", "image_token")}


def load_backbone(
    folder: Path, config: Qwen2_5_VLConfig, trainable: nnx.State, frozen: nnx.State
) -> tuple[nnx.State, nnx.State]:
    """The states of a policy with the backbone's base parameters read from a checkpoint, one tensor at a time.

    Args:
        folder: of the checkpoint.
        config: the backbone's.
        trainable: the policy's trainable state; base parameters in it are replaced, dtype and sharding kept.
        frozen: the rest of its parameters, likewise.

    Raises:
        UserError: files or tensors that do not fit the config.

    """
    require_architecture(folder, config)
    flat = [dict(nnx.to_flat_state(state)) for state in (trainable, frozen)]

    def put(path: names.Path, array: object) -> Array:
        for leaves in flat:
            leaf = leaves.get((BACKBONE, *path))
            if leaf is not None:
                old = leaf.get_value()
                host = np.asarray(array, old.dtype)
                # Not device_put, which sends the whole array to all processes to compare it.
                new = jax.make_array_from_callback(host.shape, old.sharding, host.__getitem__)
                leaves[(BACKBONE, *path)] = leaf.replace(new)
                return new
        raise KeyError(f"no state holds {path}")

    weights.load(folder, config, put=put)
    return nnx.from_flat_state(flat[0]), nnx.from_flat_state(flat[1])
