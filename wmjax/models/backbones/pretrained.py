"""Loads published weights into the base parameters of a policy's backbone, by path, onto their devices."""

import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array

from wmjax.core.errors import UserError
from wmjax.core.files import hash_files
from wmjax.core.paths import expand
from wmjax.models.backbones.base import BACKBONES, BackboneConfig
from wmjax.models.backbones.weight_files import weight_files

BACKBONE = "backbone"
"""The attribute of :class:`wmjax.models.vla.VLA` that holds the vision-language model."""


def backbone_folder(name: str, setting: str = "train.backbone_weights") -> Path:
    """The folder of a backbone: an existing one, or a Hugging Face hub id, downloaded once.

    Raises:
        UserError: no such folder and the hub does not deliver it.

    """
    if (folder := expand(name)).is_dir():
        return folder
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        raise UserError(
            f"{setting} {name!r} is neither a folder nor a hub id such as Qwen/Qwen2.5-VL-3B-Instruct; give its place "
            f"as --{setting}"
        )
    return download(name)


def backbone_hash(folder: Path) -> str:
    """The first 16 hex digits of the SHA-256 over a backbone's weight files: the identity of a policy's base.

    Raises:
        UserError: there are none, or one that the index names is missing.

    """
    files = weight_files(folder)  # not an adapter, or shards of an earlier save, in the same folder
    return hash_files(files, "download the checkpoint again")[:16]


def download(hub_id: str, revision: str = "main", cache: Path | None = None) -> Path:
    """Fetches a checkpoint from the Hugging Face hub and returns its folder.

    Raises:
        UserError: no network, or no such repository.

    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        patterns = ["*.json", "*.jinja", "*.safetensors", "merges.txt"]
        return Path(snapshot_download(hub_id, revision=revision, cache_dir=cache, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(f"cannot download {hub_id!r} ({error}); give the folder of a downloaded checkpoint") from error


def load_backbone(
    folder: Path, config: BackboneConfig, trainable: nnx.State, frozen: nnx.State
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
    flat = [dict(nnx.to_flat_state(state)) for state in (trainable, frozen)]

    def put(path: tuple[Any, ...], array: object) -> Array:
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

    BACKBONES.resolve(config.kind).read_weights(folder, config, put)
    return nnx.from_flat_state(flat[0]), nnx.from_flat_state(flat[1])
