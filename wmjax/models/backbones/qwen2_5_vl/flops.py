"""Floating-point operations of the model's matrix products, by formula: two per multiply-add, nothing else counted."""

from collections.abc import Sequence

from wmjax.models.backbones.qwen2_5_vl import image
from wmjax.models.backbones.qwen2_5_vl.config import Qwen2_5_VLConfig


def forward_flops(config: Qwen2_5_VLConfig, grids: Sequence[tuple[int, int]], tokens: int) -> int:
    """Of one prompt to its last hidden states, without logits.

    Args:
        config: with or without adapters.
        grids: merged tokens (rows, columns) of every image.
        tokens: the prompt's padded length; attention is counted in full, not by its causal half.

    """
    text = config.text
    vision = sum(vision_flops(config, grid) for grid in grids)
    return vision + text.depth * (tokens * _text_base(config) + _attention(config, tokens)) + tokens * _adapters(config)


def lora_step_flops(config: Qwen2_5_VLConfig, grids: Sequence[tuple[int, int]], tokens: int) -> int:
    """Of one prompt's forward and backward pass with adapters in the text decoder and a frozen base, without remat.

    A frozen product costs one more product backwards (the gradient of its input), attention and adapters two. The
    vision tower has no adapters and no backward pass.
    """
    base = config.text.depth * (tokens * _text_base(config) + 2 * _attention(config, tokens))
    return forward_flops(config, grids, tokens) + base + 2 * tokens * _adapters(config)


def vision_flops(config: Qwen2_5_VLConfig, grid: tuple[int, int]) -> int:
    """Of one image of ``grid`` merged tokens through the vision tower, without adapters."""
    vision = config.vision
    groups = grid[0] * grid[1]
    unit = vision.merge**2
    patches, width = groups * unit, vision.hidden * unit
    embed = vision.channels * vision.patch**2 * vision.hidden  # a still image: time steps of the kernel are added
    linear = 4 * vision.hidden**2 + 3 * vision.hidden * vision.mlp
    pairs = sum(r.windows * (r.window_size * unit) ** 2 for r in image.regions(*grid, vision.window_groups))
    full = len(vision.full_attention)
    scores = 2 * vision.hidden * ((vision.depth - full) * pairs + full * patches**2)
    merger = groups * (width**2 + width * vision.out)
    return 2 * (patches * (embed + vision.depth * linear) + scores + merger)


def _text_base(config: Qwen2_5_VLConfig) -> int:
    """Per token and layer: all projections."""
    return 2 * sum(inputs * outputs for inputs, outputs in _projections(config).values())


def _attention(config: Qwen2_5_VLConfig, tokens: int) -> int:
    """Per layer: scores and the weighted sum of values."""
    return 4 * tokens**2 * config.text.hidden


def _adapters(config: Qwen2_5_VLConfig) -> int:
    """Per token, all layers; layers outside ``lora.layers`` compute their adapters too and multiply them by zero."""
    lora, sizes = config.lora, _projections(config)
    return 2 * config.text.depth * lora.rank * sum(sum(sizes[name]) for name in lora.targets) if lora.rank else 0


def _projections(config: Qwen2_5_VLConfig) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of a decoder layer's projections."""
    text = config.text
    kv = text.kv_heads * text.head_dim
    return {
        "q_proj": (text.hidden, text.hidden),
        "k_proj": (text.hidden, kv),
        "v_proj": (text.hidden, kv),
        "o_proj": (text.hidden, text.hidden),
        "gate_proj": (text.hidden, text.mlp),
        "up_proj": (text.hidden, text.mlp),
        "down_proj": (text.mlp, text.hidden),
    }
