"""The blocks of Hugging Face's V-JEPA 2, with rotary tables in float32 and a residual stream in float32.

The modules and parameters are the reference's. In float32 the result is the reference's too. Under autocast the
reference computes positions and residuals in bfloat16, and these blocks compute what the Flax encoder does.
"""

from typing import Any

import torch
from torch.nn import functional

from wmjax.encoders.vjepa2.config import VJEPA2Config
from wmjax.encoders.vjepa2.rotary import rotary_table


class Rotary:
    """Rotary tables of all token positions for one head width, gathered by token id."""

    def __init__(self, head_dim: int, config: VJEPA2Config) -> None:
        tokens = config.grid_size**2 * (config.frames_per_clip // config.tubelet_size)
        self.cos, self.sin = (torch.from_numpy(t) for t in rotary_table(head_dim, config.grid_size, tokens))

    def __call__(self, ids: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine ``[batch or 1, 1, tokens, head_dim]``."""
        if ids is None:
            return self.cos[None, None], self.sin[None, None]
        return self.cos[ids][:, None], self.sin[ids][:, None]


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    pairs = x.unflatten(-1, (-1, 2))
    turned = torch.stack((-pairs[..., 1], pairs[..., 0]), dim=-1).flatten(-2)
    return (x * cos + turned * sin).to(x.dtype)


def run_block(
    layer: Any, x: torch.Tensor, table: tuple[torch.Tensor, torch.Tensor], *, fused: bool = False
) -> torch.Tensor:
    """One ``VJEPA2Layer`` on tokens ``[batch, tokens, dim]`` with given rotary tables.

    ``fused`` is for inference: PyTorch's fused attention has a slow backward pass in bfloat16 on CPUs, but it keeps the
    scores in float32.
    """
    attention = layer.attention
    normed = layer.norm1(x)
    query, key, value = (
        f(normed).unflatten(-1, (-1, attention.attention_head_size)).transpose(1, 2)
        for f in (attention.query, attention.key, attention.value)
    )
    if fused:
        turned = _rotate(query, *table), _rotate(key, *table)
        out = functional.scaled_dot_product_attention(*turned, value, scale=attention.scaling)
    else:
        scores = _rotate(query * attention.scaling, *table) @ _rotate(key, *table).transpose(-1, -2)
        out = scores.softmax(-1, dtype=torch.float32).to(value.dtype) @ value
    x = x + attention.proj(out.transpose(1, 2).flatten(2))
    return x + layer.mlp(layer.norm2(x))


def gather(tokens: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Tokens ``[batch, n, dim]`` at ``ids`` ``[batch, k]``."""
    return tokens.gather(1, ids[..., None].expand(-1, -1, tokens.shape[-1]))


def patchify(pixels: torch.Tensor, config: VJEPA2Config) -> torch.Tensor:
    """Cuts ``[batch, time, 3, height, width]`` into tubelets ``[batch, tokens, 3 * tubelet * patch * patch]``.

    The values are in the order of the patch embedding's convolution kernel, which then is one matrix product.
    """
    batch, time, channels, height, width = pixels.shape
    s, p = config.tubelet_size, config.patch_size
    x = pixels.reshape(batch, time // s, s, channels, height // p, p, width // p, p)
    return x.permute(0, 1, 4, 6, 3, 2, 5, 7).reshape(batch, -1, channels * s * p * p)


def embed(encoder: Any, patches: torch.Tensor) -> torch.Tensor:
    """The projection of patches ``[batch, tokens, values]``, float32 ``[batch, tokens, dim]``."""
    projection = encoder.embeddings.patch_embeddings.proj
    return functional.linear(patches, projection.weight.flatten(1), projection.bias).float()


def encode_patches(encoder: Any, patches: torch.Tensor, table: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """The encoder's normalised output for all tokens of clips, ``[batch, tokens, dim]``."""
    x = embed(encoder, patches)
    for layer in encoder.layer:
        x = run_block(layer, x, table, fused=True)
    return encoder.layernorm(x)
