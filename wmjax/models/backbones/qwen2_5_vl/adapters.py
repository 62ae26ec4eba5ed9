"""LoRA adapters of Qwen2.5-VL: files that PEFT reads and writes, and merging into the base weights.

A folder holds ``adapter_config.json`` and ``adapter_model.safetensors`` under the names that PEFT gives the modules of
``transformers.Qwen2_5_VLForConditionalGeneration``. Rows of added tokens are in a separate file, because PEFT has
no place for them.
"""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float
from safetensors.numpy import load_file, save_file

from wmjax.core.errors import UserError
from wmjax.core.reading import read_json, typed
from wmjax.models.backbones.qwen2_5_vl import names
from wmjax.models.backbones.qwen2_5_vl.config import Qwen2_5_VLConfig
from wmjax.models.backbones.qwen2_5_vl.model import Qwen2_5_VL
from wmjax.models.backbones.qwen2_5_vl.weights import misfits, open_tensors, summarise
from wmjax.models.nn.lora import TEXT_PROJECTIONS, VISION_PROJECTIONS, LoRAConfig

FIX = "save the adapters again"
WEIGHTS, CONFIG, ADDED = "adapter_model.safetensors", "adapter_config.json", "added_tokens.safetensors"

PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of ``init_lora_weights`` that leave the base as it was; the others subtract the adapter's start from it."""
REFUSED = (
    "modules_to_save", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "use_dora", "use_qalora", "use_bdlora",
    "lora_bias", "trainable_token_indices", "target_parameters", "layer_replication", "alora_invocation_tokens",
    "loftq_config", "corda_config", "lora_ga_config", "velora_config", "monteclora_config", "arrow_config",
    "kasa_config",
)  # fmt: skip
"""Fields of PEFT's config that change the adapted model in a way that :class:`LoRAConfig` cannot say."""
TEXT_STACK, VISION_STACK = "model.layers", "visual.blocks"
PATTERN = re.compile(r"(visual\.blocks|model\.layers)\.(\d+)\.([a-z_.]+)\.lora_[AB]\.weight")


def save(model: Qwen2_5_VL, folder: Path | str, *, base: str | None = None) -> None:
    """Writes a model's adapters; ``PeftModel.from_pretrained(base_model, folder)`` reads them.

    They have the dtype of the computation, to which every call rounds them anyway.

    Args:
        model: with adapters.
        folder: made if missing.
        base: hub id or folder of the base, kept in the config; PEFT's ``AutoPeftModel`` needs it.

    Raises:
        UserError: the model has no adapters.

    """
    entries = names.adapter_entries(model.config)
    if not entries:
        raise UserError("model.backbone.lora.rank is 0, so there are no adapters to save; save the weights instead")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    leaves = names.adapter_leaves(model)
    values = {path: leaf.get_value().astype(model.config.dtype) for path, leaf in leaves.items()}
    tensors = {names.peft_name(e.name): names.to_checkpoint(values[e.path], e) for e in entries}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(to_peft_config(model.config, base), indent=2) + "\n", encoding="utf-8")
    if model.added is not None:
        save_file({"added": np.asarray(jax.device_get(model.added.get_value()))}, folder / ADDED)


def to_peft_config(config: Qwen2_5_VLConfig, base: str | None = None) -> dict[str, Any]:
    """``adapter_config.json``; its expression for the adapted modules matches their whole names, and no others."""
    lora = config.lora
    modules: dict[str, set[str]] = {}
    for entry in names.adapter_entries(config):
        stack, _, module = _split(entry.name)
        modules.setdefault(stack, set()).add(module)
    parts = []
    for stack, chosen in modules.items():
        prefix = names.peft_name(f"{stack}.").removeprefix(names.PEFT_PREFIX)
        layers = "|".join(map(str, lora.layers)) if stack == TEXT_STACK and lora.layers else r"\d+"
        parts.append(f"{re.escape(prefix)}({layers})\\.({'|'.join(map(re.escape, sorted(chosen)))})")
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "use_rslora": lora.rank_stabilised,
        "target_modules": "|".join(parts),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
    }


@dataclasses.dataclass(frozen=True)
class _File:
    """The fields of PEFT's config that are used."""

    r: int
    lora_alpha: float
    lora_dropout: float = 0.0
    use_rslora: bool = False


def configure(config: Qwen2_5_VLConfig, folder: Path | str) -> Qwen2_5_VLConfig:
    """A base model's config with the adapters of a folder, written by :func:`save` or by PEFT.

    Which projections and layers are adapted is read from the tensors: PEFT has many ways to say it.

    Raises:
        UserError: a missing or damaged file, or adapters that :class:`LoRAConfig` cannot express.

    """
    folder = Path(folder)
    values = _read_config(folder / CONFIG)
    targets: dict[str, set[str]] = {TEXT_STACK: set(), VISION_STACK: set()}
    layers: set[int] = set()
    with open_tensors(folder / WEIGHTS) as file:
        for name in file.keys():  # noqa: SIM118, not a dict
            stack, layer, module = _split(_published(name))
            if stack in targets:
                targets[stack].add(module.rsplit(".", 1)[-1])
                layers |= {layer} if stack == TEXT_STACK else set()
    file = typed(values, _File, str(folder / CONFIG), FIX)
    lora = LoRAConfig(
        rank=file.r,
        alpha=file.lora_alpha,
        dropout=file.lora_dropout,
        rank_stabilised=file.use_rslora,
        targets=tuple(n for n in TEXT_PROJECTIONS if n in targets[TEXT_STACK]),
        vision_targets=tuple(n for n in VISION_PROJECTIONS if n in targets[VISION_STACK]),
        layers=() if len(layers) == config.text.depth else tuple(sorted(layers)),
    )
    return dataclasses.replace(config, lora=lora)


def _split(name: str) -> tuple[str, int, str]:
    """Stack, layer and module of an adapter's published name; an empty stack for any other tensor."""
    match = PATTERN.fullmatch(name)
    return (match[1], int(match[2]), match[3]) if match else ("", 0, "")


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path} does not exist; give a folder of adapters saved by PEFT or wmjax")
    values = read_json(path, dict[str, Any], FIX)
    if values.get("peft_type") != "LORA":
        raise UserError(f"{path}: peft_type is {values.get('peft_type')!r}; only 'LORA' is supported")
    start, bias = values.get("init_lora_weights", True), values.get("bias", "none")
    problems = {name: values[name] for name in REFUSED if values.get(name)}
    problems |= {} if start in PLAIN_STARTS else {"init_lora_weights": start}
    problems |= {} if bias == "none" else {"bias": bias}
    for name, value in problems.items():
        raise UserError(f"{path}: {name} is {value!r}, which is not supported; merge the adapters with PEFT instead")
    return values


def load(model: Qwen2_5_VL, folder: Path | str) -> None:
    """Sets a model's adapters, and its added tokens if the folder has any, in place.

    The model's config has the adapters of the folder: make it with :func:`configure`.

    Raises:
        UserError: a missing or damaged file, another scale, or tensors that are missing, surplus or misshapen.

    """
    folder, own = Path(folder), model.config.lora
    stored = configure(model.config, folder).lora
    if stored.scale != own.scale:
        raise UserError(
            f"model.backbone.lora scales by {own.scale:g}, the adapters in {folder} by {stored.scale:g}; set rank, "
            f"alpha and rank_stabilised to {stored.rank}, {stored.alpha:g} and {str(stored.rank_stabilised).lower()}"
        )
    entries = names.adapter_entries(model.config)
    tensors = _read_tensors(folder / WEIGHTS, entries)
    leaves = names.adapter_leaves(model)
    arrays = {path: np.zeros(leaf.shape, np.float32) for path, leaf in leaves.items()}
    for entry in entries:
        arrays[entry.path][entry.layer] = names.to_module(tensors[entry.name], entry.kind)
    for path, leaf in leaves.items():
        leaf.set_value(jnp.asarray(arrays[path]))
    if model.added is not None and (folder / ADDED).is_file():
        rows = load_file(folder / ADDED)["added"]
        if rows.shape != model.added.shape:
            raise UserError(f"{folder / ADDED} has rows {rows.shape}, the model {model.added.shape}; set added_tokens")
        model.added.set_value(jnp.asarray(rows, jnp.float32))


def _read_tensors(path: Path, entries: list[names.Entry]) -> dict[str, np.ndarray]:
    """The tensors by published name, after one check that lists everything that does not fit."""
    wanted = {entry.name: entry.shape for entry in entries}
    with open_tensors(path) as file:
        where = {_published(name): name for name in file.keys()}  # noqa: SIM118, not a dict
        problems = [f"missing {names.peft_name(name)}" for name in wanted if name not in where]
        problems += [f"surplus {stored}" for name, stored in where.items() if name not in wanted]
        for name in wanted.keys() & where.keys():
            problems += misfits(where[name], file.get_slice(where[name]), wanted[name])
        if problems:
            raise UserError(f"{path} does not fit the config: {summarise(problems)}; take lora from its config")
        return {name: file.get_tensor(where[name]) for name in wanted}


def _published(name: str) -> str:
    return names.published_name(name.removeprefix(names.PEFT_PREFIX))


def merge(model: Qwen2_5_VL) -> Qwen2_5_VL:
    """The same function without adapters: every adapted kernel plus ``scale A B``, in the kernel's dtype.

    Added in float32, one kernel at a time; the parameters that change nothing are shared with ``model``.
    """
    config = model.config
    merged = names.abstract_model(dataclasses.replace(config, lora=LoRAConfig()))
    values = {tuple(map(str, path)): leaf for path, leaf in nnx.to_flat_state(nnx.state(model))}
    active = np.isin(np.arange(config.text.depth), config.lora.layers or range(config.text.depth))
    for path, leaf in nnx.to_flat_state(nnx.state(merged)):
        own = tuple(map(str, path))
        value = values[own].get_value()
        a, b = (values.get((*own[:-1], name)) for name in ("lora_a", "lora_b"))
        if own[-1] == "kernel" and a is not None and b is not None:
            layers = active if own[0] == "layers" else np.ones(config.vision.depth, bool)
            scale = jnp.asarray(config.lora.scale * layers, jnp.float32)
            value = _add(value, a.get_value(), b.get_value(), scale)
        leaf.set_value(value)
    return merged


@jax.jit
def _add(
    kernel: Float[Array, "layers inputs outputs"],
    a: Float[Array, "layers inputs rank"],
    b: Float[Array, "layers rank outputs"],
    scale: Float[Array, " layers"],
) -> Float[Array, "layers inputs outputs"]:
    """Layer by layer, so that only one float32 kernel exists at a time."""

    def one(parts: tuple[Array, Array, Array, Array]) -> Array:
        kernel, a, b, scale = parts
        low = jnp.matmul(a * scale, b, precision=jax.lax.Precision.HIGHEST)
        return (kernel.astype(jnp.float32) + low).astype(kernel.dtype)

    return jax.lax.map(one, (kernel, a, b, scale))
