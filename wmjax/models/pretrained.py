"""Published weights under a policy network: its backbone's base parameters, by path, onto their devices."""

import hashlib
from pathlib import Path

import jax
from flax import nnx
from jaxtyping import Array

from wmjax.errors import UserError
from wmjax.models.qwen2_5_vl import names, weights
from wmjax.models.qwen2_5_vl.config import Qwen2_5_VLConfig

BACKBONE = "backbone"
"""The attribute of :class:`wmjax.models.vla.VLA` that holds the vision-language model."""


def backbone_folder(name: str) -> Path:
    """The folder of a backbone: an existing one, or a Hugging Face hub id, downloaded once.

    Raises:
        UserError: no such folder and the hub does not deliver it.

    """
    if Path(name).is_dir():
        return Path(name)
    if "/" not in name.strip("/"):
        raise UserError(
            f"train.backbone_weights {name!r} is neither a folder nor a hub id such as Qwen/Qwen2.5-VL-3B-Instruct"
        )
    return weights.download(name)


def backbone_hash(folder: Path) -> str:
    """The first 16 hex digits of the SHA-256 over a backbone's safetensors: which base a policy was trained on."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            while block := file.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()[:16]


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
    flat = [dict(nnx.to_flat_state(state)) for state in (trainable, frozen)]

    def put(path: names.Path, array: object) -> Array:
        for leaves in flat:
            leaf = leaves.get((BACKBONE, *path))
            if leaf is not None:
                old = leaf.get_value()
                new = jax.device_put(jax.numpy.asarray(array, old.dtype), old.sharding)
                leaves[(BACKBONE, *path)] = leaf.replace(new)
                return new
        raise KeyError(f"no state holds {path}")

    weights.load(folder, config, put=put)
    return nnx.from_flat_state(flat[0]), nnx.from_flat_state(flat[1])
