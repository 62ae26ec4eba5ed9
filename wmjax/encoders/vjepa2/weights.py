"""V-JEPA 2 weights between Hugging Face safetensors and the Flax encoder, without torch.

One table maps names; ``{i}`` is a layer, whose tensors are stacked on a leading axis here.
"""

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import save_file

from wmjax.core.errors import UserError
from wmjax.encoders.vjepa2.config import VJEPA2Config, to_hf_config
from wmjax.encoders.vjepa2.files import read_config, weight_files
from wmjax.encoders.vjepa2.model import VJEPA2Encoder

LAYER_MODULES = {
    "norm1": "norm1",
    "norm2": "norm2",
    "query": "attention.query",
    "key": "attention.key",
    "value": "attention.value",
    "proj": "attention.proj",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
}


def name_table() -> dict[tuple[str, ...], str]:
    """Maps the Flax parameter path to the Hugging Face name of the encoder's tensors."""
    table: dict[tuple[str, ...], str] = {
        ("patch_embed", "kernel"): "encoder.embeddings.patch_embeddings.proj.weight",
        ("patch_embed", "bias"): "encoder.embeddings.patch_embeddings.proj.bias",
        ("layernorm", "scale"): "encoder.layernorm.weight",
        ("layernorm", "bias"): "encoder.layernorm.bias",
    }
    for ours, theirs in LAYER_MODULES.items():
        weight = "scale" if ours.startswith("norm") else "kernel"
        table["layers", ours, weight] = f"encoder.layer.{{i}}.{theirs}.weight"
        table["layers", ours, "bias"] = f"encoder.layer.{{i}}.{theirs}.bias"
    return table


def _from_hf(path: tuple[str, ...], tensor: np.ndarray) -> np.ndarray:
    """A Hugging Face tensor in our layout, float32: kernels transposed, Conv3d (D,C,t,h,w) to (t*h*w*C,D)."""
    tensor = tensor.astype(np.float32)
    if path == ("patch_embed", "kernel"):
        return tensor.transpose(2, 3, 4, 1, 0).reshape(-1, tensor.shape[0])
    return tensor.T if path[-1] == "kernel" else tensor


def _to_hf(path: tuple[str, ...], tensor: np.ndarray, config: VJEPA2Config) -> np.ndarray:
    """The inverse of :func:`_from_hf`."""
    if path == ("patch_embed", "kernel"):
        shape = (config.tubelet_size, config.patch_size, config.patch_size, config.channels, config.hidden_size)
        return tensor.reshape(shape).transpose(4, 3, 0, 1, 2)
    return tensor.T if path[-1] == "kernel" else tensor


def tree_from_hf(get: Callable[[str], np.ndarray], config: VJEPA2Config) -> dict[str, Any]:
    """The Flax parameter tree (nested dict of float32 numpy arrays), reading tensors by Hugging Face name."""
    tree: dict[str, Any] = {}
    for path, name in name_table().items():
        if path[0] == "layers":
            value = np.stack([_from_hf(path, get(name.format(i=i))) for i in range(config.num_layers)])
        else:
            value = _from_hf(path, get(name))
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = value
    return tree


def tree_to_hf(tree: dict[str, Any], config: VJEPA2Config) -> dict[str, np.ndarray]:
    """Hugging Face tensors by name, from the Flax parameter tree."""
    tensors: dict[str, np.ndarray] = {}
    for path, name in name_table().items():
        node: Any = tree
        for key in path:
            node = node[key]
        value = np.asarray(node)
        slices = [value] if path[0] != "layers" else list(value)
        for i, part in enumerate(slices):
            tensors[name.format(i=i)] = np.ascontiguousarray(_to_hf(path, part, config))
    return tensors


def encoder_from_tree(tree: dict[str, Any], config: VJEPA2Config, dtype: Any = jnp.float32) -> VJEPA2Encoder:
    """An encoder holding the given parameters (no random initialisation is computed).

    Raises:
        UserError: a tensor has another shape than the config requires.

    """
    abstract = nnx.eval_shape(lambda: VJEPA2Encoder(config, dtype=dtype, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(abstract)
    leaves = jax.tree_util.tree_flatten_with_path(nnx.to_pure_dict(state))[0]
    for path, leaf in leaves:
        keys = tuple(p.key for p in path)
        value: Any = tree
        for key in keys:
            value = value[key]
        if value.shape != leaf.shape:
            raise UserError(f"encoder tensor {'.'.join(keys)} has shape {value.shape}, the config needs {leaf.shape}")
    nnx.replace_by_pure_dict(state, jax.tree.map(jnp.asarray, tree))
    return nnx.merge(graph, state)


def _tensors(files: list[Path]) -> Iterator[tuple[str, Callable[[], np.ndarray]]]:
    """Every tensor's name (a classification checkpoint's prefix removed) and a lazy reader."""
    for file in files:
        try:
            handle = safe_open(file, framework="numpy")
        except Exception as error:  # the library's own exception type has no stable name
            raise UserError(f"{file}: not a readable safetensors file ({error}); copy it again") from error
        for name in list(handle.keys()):
            yield name.removeprefix("vjepa2."), functools.partial(handle.get_tensor, name)


def load_encoder(folder: Path, dtype: Any = jnp.float32) -> VJEPA2Encoder:
    """Reads the encoder of a Hugging Face V-JEPA 2 checkpoint folder; parameters become float32.

    Raises:
        UserError: missing file or tensor, unsupported architecture, wrong shapes.

    """
    config = read_config(folder)
    readers = dict(_tensors(weight_files(folder)))

    def get(name: str) -> np.ndarray:
        if name not in readers:
            raise UserError(f"{folder}: tensor {name} is missing; this is not a V-JEPA 2 checkpoint of its config.json")
        return readers[name]()

    return encoder_from_tree(tree_from_hf(get, config), config, dtype)


def save_encoder(encoder: VJEPA2Encoder, folder: Path, dtype: Any = np.float32, revision: str = "local") -> None:
    """Writes ``model.safetensors`` and ``config.json`` that Hugging Face's ``VJEPA2Model`` reads.

    ``dtype`` float16 halves the file; what is stored then defines the encoder, and loading makes it float32.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tree = nnx.to_pure_dict(nnx.state(encoder))
    tensors = {k: v.astype(dtype) for k, v in tree_to_hf(tree, encoder.config).items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    values = {**to_hf_config(encoder.config), "wmjax_revision": revision}
    (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
