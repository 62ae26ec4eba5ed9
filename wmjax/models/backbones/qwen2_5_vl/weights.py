"""Reading and writing of Qwen2.5-VL weights as safetensors, tensor by tensor, without torch.

``load_model`` reads a downloaded checkpoint, ``save`` writes one that transformers reads.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from wmjax.core.errors import UserError
from wmjax.core.reading import what_is_wrong
from wmjax.models.backbones.base import Put
from wmjax.models.backbones.qwen2_5_vl import names
from wmjax.models.backbones.qwen2_5_vl.config import Qwen2_5_VLConfig, load_hf_config
from wmjax.models.backbones.qwen2_5_vl.model import Qwen2_5_VL
from wmjax.models.backbones.weight_files import INDEX, SINGLE_FILE, weight_files
from wmjax.models.nn.lora import ADAPTER

DTYPES = ("F32", "BF16", "F16")


def load_model(
    folder: Path | str, config: Qwen2_5_VLConfig | None = None, *, seed: int = 0, put: Put | None = None
) -> Qwen2_5_VL:
    """The model of a checkpoint folder.

    Args:
        folder: with ``config.json`` and ``model.safetensors`` or its index and shards.
        config: the architecture, with adapters and dtypes as wanted; by default that of ``config.json``.
        seed: of the initial values of adapters and added tokens, which are not in the checkpoint.
        put: where parameters go; by default to the default device.

    Raises:
        UserError: a missing or damaged file, or tensors that are missing, surplus or of another shape or dtype.

    """
    config = config or load_hf_config(folder)
    model = names.abstract_model(config)
    loaded = load(folder, config, put=put)
    for path, leaf in names.base_leaves(model).items():
        leaf.set_value(loaded.pop(path))
    adapters = jax.jit(lambda: nnx.state(Qwen2_5_VL(config, rngs=nnx.Rngs(seed)), nnx.Any(*ADAPTER)))()
    nnx.update(model, adapters)
    return model


def load(folder: Path | str, config: Qwen2_5_VLConfig, *, put: Put | None = None) -> dict[names.Path, Array]:
    """The base parameters by path, in ``config.param_dtype``; memory peaks at one parameter above their total."""
    shards = _Shards(Path(folder))
    expected = names.entries(config)
    shards.check(expected, config.tied)
    place = put or (lambda _, array: jnp.asarray(array))
    shapes = {path: leaf.shape for path, leaf in names.base_leaves(names.abstract_model(config)).items()}
    result: dict[names.Path, Array] = {}
    for path, shape in shapes.items():
        array = np.empty(shape, jnp.dtype(config.param_dtype))
        for entry in (e for e in expected if e.path == path):
            array[... if entry.layer is None else entry.layer] = names.to_module(shards.read(entry.name), entry.kind)
        result[path] = place(path, array)
    return result


class _Shards:
    """The safetensors files of a folder, opened lazily, with tensors by their published names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.where: dict[str, tuple[Path, str]] = {}
        for path in weight_files(folder):
            with open_tensors(path) as file:
                for name in file.keys():  # noqa: SIM118, not a dict
                    if not names.IGNORED.fullmatch(name):
                        self.where[names.published_name(name)] = (path, name)
        self._current: tuple[Path, Any] | None = None

    def check(self, expected: list[names.Entry], tied: bool) -> None:
        """Raises one error that lists every missing, surplus, misshapen or mistyped tensor."""
        wanted = {entry.name: entry.shape for entry in expected}
        surplus = sorted(set(self.where) - set(wanted) - ({"lm_head.weight"} if tied else set()))
        problems = [f"missing {name}" for name in wanted if name not in self.where]
        problems += [f"surplus {name}" for name in surplus]
        for name in wanted:
            if name in self.where:
                path, stored = self.where[name]
                problems += misfits(name, self._file(path).get_slice(stored), wanted[name])
        if problems and surplus:
            problems.insert(0, f"the files have {', '.join(surplus[:3])}{', ...' if len(surplus) > 3 else ''}")
        if problems:
            raise UserError(f"{self.folder} does not fit the config: {summarise(problems)}; take both from one model")

    def read(self, name: str) -> np.ndarray:
        """One tensor."""
        path, stored = self.where[name]
        return self._file(path).get_tensor(stored)

    def _file(self, path: Path) -> Any:
        if self._current is None or self._current[0] != path:
            self._current = (path, open_tensors(path))
        return self._current[1]


def open_tensors(path: Path) -> Any:
    """A safetensors file, opened for reading numpy arrays.

    Raises:
        UserError: a missing, truncated or damaged file.

    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; download the checkpoint again")
    try:
        return safe_open(path, framework="np")
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is {what_is_wrong(path, error)}; download it again") from error


def misfits(name: str, part: Any, shape: tuple[int, ...]) -> list[str]:
    """The problem of a stored tensor (a slice of a safetensors file): its shape, its dtype, or none."""
    if tuple(part.get_shape()) != shape:
        return [f"{name} has shape {tuple(part.get_shape())}, expected {shape}"]
    if part.get_dtype() not in DTYPES:
        return [f"{name} has dtype {part.get_dtype()}, expected one of {', '.join(DTYPES)}"]
    return []


def summarise(problems: list[str], limit: int = 20) -> str:
    """At most ``limit`` problems, and how many there are."""
    listed = "; ".join(problems[:limit])
    return listed if len(problems) <= limit else f"{listed}; and {len(problems) - limit} more"


def save(model: Qwen2_5_VL, folder: Path | str, *, shard_bytes: int = 4 * 2**30) -> None:
    """Writes the base parameters as a Hugging Face checkpoint: ``config.json``, shards and their index.

    Adapters are not written: merge them first with ``adapters.merge``, or write them beside with ``adapters.save``.
    Shards are written one at a time, the index last.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    leaves = names.base_leaves(model)
    shards = _plan(names.entries(model.config), leaves, shard_bytes)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else SINGLE_FILE
        tensors = {entry.name: names.to_checkpoint(leaves[entry.path].get_value(), entry) for entry in shard}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    (folder / "config.json").write_text(json.dumps(to_hf_config(model.config), indent=2) + "\n", encoding="utf-8")
    total = sum(leaf.get_value().nbytes for leaf in leaves.values())
    if len(shards) > 1:
        (folder / INDEX).write_text(
            json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}), encoding="utf-8"
        )


def _plan(
    entries: Iterable[names.Entry], leaves: Mapping[names.Path, nnx.Variable], shard_bytes: int
) -> list[list[names.Entry]]:
    """Distributes tensors over shards in order."""
    shards: list[list[names.Entry]] = [[]]
    used = 0
    for entry in entries:
        size = int(np.prod(entry.shape)) * leaves[entry.path].get_value().dtype.itemsize
        if shards[-1] and used + size > shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(entry)
        used += size
    return shards


def to_hf_config(config: Qwen2_5_VLConfig) -> dict[str, Any]:
    """``config.json`` as published for this architecture; :func:`config.from_hf_config` reads it back."""
    text, vision = config.text, dataclasses.asdict(config.vision)
    renamed = {
        "hidden": "hidden_size", "mlp": "intermediate_size", "heads": "num_heads", "out": "out_hidden_size",
        "patch": "patch_size", "temporal_patch": "temporal_patch_size", "merge": "spatial_merge_size",
        "window": "window_size", "full_attention": "fullatt_block_indexes", "channels": "in_channels",
    }  # fmt: skip
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "vocab_size": text.vocabulary,
        "hidden_size": text.hidden,
        "num_hidden_layers": text.depth,
        "num_attention_heads": text.heads,
        "num_key_value_heads": text.kv_heads,
        "intermediate_size": text.mlp,
        "hidden_act": "silu",
        "rms_norm_eps": text.norm_epsilon,
        "rope_theta": text.rope_theta,
        "rope_scaling": {"type": "mrope", "mrope_section": list(text.rope_sections)},
        "use_sliding_window": False,
        "tie_word_embeddings": config.tied,
        "torch_dtype": config.param_dtype,
        "image_token_id": config.image_token,
        "vision_start_token_id": config.vision_start_token,
        "vision_end_token_id": config.vision_end_token,
        "vision_config": {renamed.get(k, k): v for k, v in vision.items()} | {"hidden_act": "silu"},
    }
