"""Random Qwen2.5-VL reference models and prompts, and the comparison used by the parity tests."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Qwen2_5_VLConfig as ReferenceConfig
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from wmjax.models.backbones.qwen2_5_vl.config import Qwen2_5_VLConfig, TextConfig, VisionConfig
from wmjax.models.backbones.qwen2_5_vl.model import Qwen2_5_VL
from wmjax.models.backbones.qwen2_5_vl.weights import load_model, to_hf_config

IMAGE, START, END = 120, 121, 122


def small_config(heads: int = 4, kv_heads: int = 2, tied: bool = True, **changes: Any) -> Qwen2_5_VLConfig:
    """A few layers of every kind; windows of 4 x 4 groups."""
    text = TextConfig(
        vocabulary=128, hidden=16 * heads, depth=3, heads=heads, kv_heads=kv_heads, mlp=80, rope_sections=(2, 3, 3)
    )
    vision = VisionConfig(depth=4, hidden=48, heads=2, mlp=52, out=16 * heads, full_attention=(1, 3))
    config = Qwen2_5_VLConfig(
        vision=vision, text=text, tied=tied, image_token=IMAGE, vision_start_token=START, vision_end_token=END
    )
    return dataclasses.replace(config, **changes)


def reference_config(config: Qwen2_5_VLConfig) -> ReferenceConfig:
    """The reference's config, from the ``config.json`` that we write."""
    values = to_hf_config(config) | {"video_token_id": IMAGE + 7 if config.image_token == IMAGE else 151656}
    values["bos_token_id"] = values["eos_token_id"] = 0
    return ReferenceConfig(**values)


def make_reference(config: Qwen2_5_VLConfig, seed: int = 0) -> Qwen2_5_VLForConditionalGeneration:
    """A reference model with random weights of realistic size, biases and norms included."""
    torch.manual_seed(seed)
    reference = reference_config(config)
    reference._attn_implementation = "eager"
    model = Qwen2_5_VLForConditionalGeneration(reference).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "ln_q" in name:
                parameter.copy_(1 + 0.1 * torch.randn_like(parameter))
            elif parameter.ndim == 1:
                parameter.normal_(0, 0.1)
            else:
                parameter.normal_(0, (1 if "embed_tokens" in name else parameter[0].numel()) ** -0.5)
    return model


def convert(reference: Qwen2_5_VLForConditionalGeneration, config: Qwen2_5_VLConfig, folder: Path) -> Qwen2_5_VL:
    """Our model with the reference's weights, through the files that ``save_pretrained`` writes."""
    reference.save_pretrained(folder)
    return load_model(folder, config)


@dataclasses.dataclass
class Case:
    """Prompts of a batch: per prompt the image sizes in pixels and the number of text tokens."""

    prompts: list[tuple[list[tuple[int, int]], int]]
    padding: str = "left"

    @functools.cached_property
    def images(self) -> list[np.ndarray]:
        """Random uint8 images, in order."""
        rng = np.random.default_rng(0)
        sizes = [size for sizes, _ in self.prompts for size in sizes]
        return [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]

    def tokens(self, factor: int = 28) -> tuple[np.ndarray, np.ndarray]:
        """Padded token ids and mask."""
        rng = np.random.default_rng(1)
        rows = []
        for sizes, text in self.prompts:
            ids = list(rng.integers(1, IMAGE, text // 2))
            for height, width in sizes:
                ids += [START, *[IMAGE] * (height // factor * (width // factor)), END]
            rows.append(ids + list(rng.integers(1, IMAGE, text - text // 2)))
        length = max(map(len, rows))
        tokens, mask = np.zeros((len(rows), length), np.int32), np.zeros((len(rows), length), bool)
        for i, ids in enumerate(rows):
            where = slice(length - len(ids), length) if self.padding == "left" else slice(0, len(ids))
            tokens[i, where], mask[i, where] = ids, True
        return tokens, mask


def processed(images: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Patches and grids from the reference's image processor."""
    out = Qwen2VLImageProcessorPil(size={"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 1280})(
        images=list(images), return_tensors="np"
    )
    return torch.from_numpy(np.asarray(out["pixel_values"])), torch.from_numpy(np.asarray(out["image_grid_thw"]))


def run_reference(reference: Qwen2_5_VLForConditionalGeneration, case: Case) -> dict[str, Any]:
    """Every layer's output, the logits and the positions of the reference."""
    tokens, mask = case.tokens()
    dtype = next(reference.parameters()).dtype
    inputs: dict[str, Any] = {
        "input_ids": torch.from_numpy(tokens).long(),
        "attention_mask": torch.from_numpy(mask).long(),
        "mm_token_type_ids": torch.from_numpy(tokens == IMAGE).int(),
    }
    if case.images:
        pixels, inputs["image_grid_thw"] = processed(case.images)
        inputs["pixel_values"] = pixels.to(dtype)
    blocks: list[torch.Tensor] = []
    layers: list[torch.Tensor] = []
    hooks = [b.register_forward_hook(lambda *a: blocks.append(_first(a[2]))) for b in reference.model.visual.blocks]
    hooks += [
        b.register_forward_hook(lambda *a: layers.append(_first(a[2]))) for b in reference.model.language_model.layers
    ]
    with torch.no_grad():
        logits = reference(**inputs, use_cache=False).logits
        positions = None
        if case.images:
            positions = reference.model.get_rope_index(
                inputs["input_ids"], inputs["mm_token_type_ids"], inputs["image_grid_thw"],
                attention_mask=inputs["attention_mask"],
            )[0]  # fmt: skip
    for hook in hooks:
        hook.remove()
    return {"blocks": blocks, "layers": layers, "logits": logits, "positions": positions}


def _first(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output


def error(ours: Any, reference: Any) -> float:
    """max |a - b| / rms(b)."""
    a, b = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
    assert a.shape == b.shape, (a.shape, b.shape)
    return float(np.abs(a - b).max() / np.sqrt((b**2).mean()))
