"""The table from checkpoint names to module paths, for published checkpoints and those of any transformers version."""

import re
from collections.abc import Iterator
from typing import Literal, NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Shaped

from wmjax.models.backbones.qwen2_5_vl.config import Qwen2_5_VLConfig
from wmjax.models.backbones.qwen2_5_vl.model import Qwen2_5_VL
from wmjax.models.nn.lora import ADAPTER

Path = tuple[str, ...]
Kind = Literal["linear", "same", "patch"]
"""``linear``: [out, in] as in PyTorch, transposed here. ``same``: unchanged. ``patch``: Conv3d [out, C, T, h, w]."""

SINGLE: dict[str, tuple[Path, Kind]] = {
    "visual.patch_embed.proj.weight": (("vision", "patch_embed", "kernel"), "patch"),
    "visual.merger.ln_q.weight": (("vision", "merger", "norm", "scale"), "same"),
    "visual.merger.mlp.0.weight": (("vision", "merger", "up", "kernel"), "linear"),
    "visual.merger.mlp.0.bias": (("vision", "merger", "up", "bias"), "same"),
    "visual.merger.mlp.2.weight": (("vision", "merger", "down", "kernel"), "linear"),
    "visual.merger.mlp.2.bias": (("vision", "merger", "down", "bias"), "same"),
    "model.embed_tokens.weight": (("embedding",), "same"),
    "model.norm.weight": (("norm", "scale"), "same"),
    "lm_head.weight": (("head", "kernel"), "linear"),
}
"""Tensors outside the layers."""

VISION_BLOCK: dict[str, Path] = {
    "norm1": ("norm1",),
    "norm2": ("norm2",),
    "attn.qkv": ("qkv",),
    "attn.proj": ("proj",),
    "mlp.gate_proj": ("mlp", "gate_proj"),
    "mlp.up_proj": ("mlp", "up_proj"),
    "mlp.down_proj": ("mlp", "down_proj"),
}
TEXT_LAYER: dict[str, Path] = {
    "input_layernorm": ("input_norm",),
    "post_attention_layernorm": ("post_norm",),
    "self_attn.q_proj": ("q_proj",),
    "self_attn.k_proj": ("k_proj",),
    "self_attn.v_proj": ("v_proj",),
    "self_attn.o_proj": ("o_proj",),
    "mlp.gate_proj": ("mlp", "gate_proj"),
    "mlp.up_proj": ("mlp", "up_proj"),
    "mlp.down_proj": ("mlp", "down_proj"),
}
"""Modules inside a layer; their tensors are ``weight`` and ``bias``."""
ADAPTER_SUFFIXES = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight"}
SUFFIXES = {"bias": "bias"} | ADAPTER_SUFFIXES
"""Names of a module's tensors in a checkpoint, other than ``weight``; those of adapters are PEFT's."""
IGNORED = re.compile(r"(.*\.)?rotary_(pos_)?emb\.(inv_freq|original_inv_freq)")
"""Tensors that follow from the config, which old versions of transformers stored."""
PEFT_PREFIX = "base_model.model."
"""The prefix that PEFT puts before the names that modules have in transformers."""

STACKS: dict[Path, tuple[str, dict[str, Path]]] = {
    ("vision", "blocks"): ("visual.blocks", VISION_BLOCK),
    ("layers",): ("model.layers", TEXT_LAYER),
}


class Entry(NamedTuple):
    """One checkpoint tensor: its published name, where it goes, and its shape in the checkpoint."""

    name: str
    path: Path
    layer: int | None
    kind: Kind
    shape: tuple[int, ...]


def published_name(name: str) -> str:
    """The name as published, also for tensors named by newer versions of transformers."""
    name = re.sub(r"^model\.visual\.", "visual.", name)
    name = re.sub(r"^language_model\.(model\.)?(?=layers\.|embed_tokens\.|norm\.)", "model.", name)
    return re.sub(r"^model\.language_model\.", "model.", name)


def peft_name(name: str) -> str:
    """The name that PEFT gives a tensor of an adapter, from its published name."""
    name = re.sub(r"^visual\.", "model.visual.", re.sub(r"^model\.", "model.language_model.", name))
    return PEFT_PREFIX + name


def abstract_model(config: Qwen2_5_VLConfig) -> Qwen2_5_VL:
    """The model with shapes in place of arrays."""
    return nnx.eval_shape(lambda: Qwen2_5_VL(config, rngs=nnx.Rngs(0)))


def base_leaves(model: Qwen2_5_VL) -> dict[Path, nnx.Variable]:
    """Every parameter that a checkpoint holds, by path; adapters and added tokens are not among them."""
    state = nnx.state(model, nnx.Not(nnx.Any(*ADAPTER)))
    return {tuple(map(str, path)): leaf for path, leaf in nnx.to_flat_state(state)}


def entries(config: Qwen2_5_VLConfig) -> list[Entry]:
    """All checkpoint tensors of a model, grouped by the parameter they belong to."""
    leaves = base_leaves(abstract_model(config))
    inverse = {path: (name, kind) for name, (path, kind) in SINGLE.items()}
    found: list[Entry] = []
    for path, leaf in leaves.items():
        if path in inverse:
            name, kind = inverse[path]
            found.append(Entry(name, path, None, kind, _checkpoint_shape(leaf.shape, kind, config)))
        else:
            found.extend(_layer_entries(path, leaf.shape, config))
    return found


def adapter_leaves(model: Qwen2_5_VL) -> dict[Path, nnx.Variable]:
    """Every LoRA matrix by path, one for all layers of a stack."""
    return {tuple(map(str, path)): leaf for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.LoRAParam))}


def adapter_entries(config: Qwen2_5_VLConfig) -> list[Entry]:
    """All LoRA tensors of a model, under published names; layers outside ``lora.layers`` have none."""
    found: list[Entry] = []
    for path, leaf in adapter_leaves(abstract_model(config)).items():
        chosen = config.lora.layers if path[0] == "layers" else ()
        found += [e for e in _layer_entries(path, leaf.shape, config) if not chosen or e.layer in chosen]
    return found


def _layer_entries(path: Path, shape: tuple[int, ...], config: Qwen2_5_VLConfig) -> Iterator[Entry]:
    prefix, modules = next(v for k, v in STACKS.items() if path[: len(k)] == k)
    inner = path[len(("vision", "blocks")) :] if path[0] == "vision" else path[1:]
    module = next(name for name, where in modules.items() if where == inner[:-1])
    kind: Kind = "linear" if inner[-1] in ("kernel", *ADAPTER_SUFFIXES) else "same"
    suffix = SUFFIXES.get(inner[-1], "weight")
    for layer in range(shape[0]):
        name = f"{prefix}.{layer}.{module}.{suffix}"
        yield Entry(name, path, layer, kind, _checkpoint_shape(shape[1:], kind, config))


def _checkpoint_shape(shape: tuple[int, ...], kind: Kind, config: Qwen2_5_VLConfig) -> tuple[int, ...]:
    if kind == "patch":
        vision = config.vision
        return (vision.hidden, vision.channels, vision.temporal_patch, vision.patch, vision.patch)
    return tuple(reversed(shape)) if kind == "linear" else tuple(shape)


def to_module(tensor: Shaped[np.ndarray, "..."], kind: Kind) -> Shaped[np.ndarray, "..."]:
    """A checkpoint tensor in the layout of our parameter."""
    if kind == "patch":
        return tensor.reshape(tensor.shape[0], -1).T
    return tensor.T if kind == "linear" else tensor


def to_checkpoint(value: Shaped[Array, "..."], entry: Entry) -> Shaped[np.ndarray, "..."]:
    """Our parameter, or one layer of it, in the layout of the checkpoint."""
    array = np.asarray(jax.device_get(value if entry.layer is None else value[entry.layer]))
    return np.ascontiguousarray((array if entry.kind == "same" else array.T).reshape(entry.shape))
