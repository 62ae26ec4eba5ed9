"""The vision tower of Qwen2.5-VL (arXiv:2502.13923, section 2.1): windowed attention with a few full blocks."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key, UInt8

from wmjax.models.backbones.qwen2_5_vl import image
from wmjax.models.backbones.qwen2_5_vl.config import Qwen2_5_VLConfig
from wmjax.models.backbones.qwen2_5_vl.layers import RMSNorm, SwiGLU, linear_factory
from wmjax.models.backbones.qwen2_5_vl.rope import Angles, patch_angles, rotate
from wmjax.models.nn.attention import attention
from wmjax.models.nn.layout import split_batch, tensor_devices
from wmjax.models.nn.lora import AdapterInputs, Linear
from wmjax.models.nn.precision import matmul
from wmjax.models.nn.stack import find_period, run_layers, stack_layers

EPSILON = 1e-6
"""Of all norms in the vision tower, whatever the text decoder uses."""


class VisionBlock(nnx.Module):
    """Pre-norm transformer block with fused queries, keys and values."""

    def __init__(self, config: Qwen2_5_VLConfig, *, rngs: nnx.Rngs) -> None:
        vision = config.vision
        linear = linear_factory(config, config.lora.vision_targets)
        gain = (2 * vision.depth) ** -0.5
        self.norm1 = RMSNorm(vision.hidden, EPSILON, rngs=rngs, param_dtype=config.param_dtype)
        shared: dict[str, Any] = {"rngs": rngs, "bias": True, "heads": vision.heads}
        self.qkv = linear(vision.hidden, 3 * vision.hidden, ("embed", "heads"), **shared, name="qkv")
        self.proj = linear(vision.hidden, vision.hidden, ("heads", "embed"), **shared, name="proj", gain=gain)
        self.norm2 = RMSNorm(vision.hidden, EPSILON, rngs=rngs, param_dtype=config.param_dtype)
        self.mlp = SwiGLU(vision.hidden, vision.mlp, linear=linear, rngs=rngs, bias=True, out_gain=gain)
        self.heads, self.implementation = vision.heads, config.attention

    def __call__(
        self,
        x: Float[Array, "images tokens hidden"],
        angles: Angles,
        segments: tuple[tuple[int, int], ...],
        adapter: AdapterInputs,
    ) -> Float[Array, "images tokens hidden"]:
        """Applies the block; ``segments`` are runs of (number of windows, tokens per window) that cover the tokens."""
        x = x + self._attend(self.norm1(x), angles, segments, adapter)
        return x + self.mlp(self.norm2(x), adapter)

    def _attend(
        self,
        x: Float[Array, "images tokens hidden"],
        angles: Angles,
        segments: tuple[tuple[int, int], ...],
        adapter: AdapterInputs,
    ) -> Float[Array, "images tokens hidden"]:
        images, tokens, hidden = x.shape
        dim = hidden // self.heads
        query, key, value = (z.reshape(images, tokens, self.heads, dim) for z in self._queries_keys_values(x, adapter))
        query, key = rotate(query, angles), rotate(key, angles)
        parts, start = [], 0
        for windows, size in segments:
            inside = slice(start, start + windows * size)
            cut = [z[:, inside].reshape(images * windows, size, self.heads, dim) for z in (query, key, value)]
            out = attention(*cut, implementation=self.implementation)
            parts.append(out.reshape(images, windows * size, hidden))
            start += windows * size
        return self.proj(jnp.concatenate(parts, axis=1) if len(parts) > 1 else parts[0], adapter)

    def _queries_keys_values(
        self, x: Float[Array, "images tokens hidden"], adapter: AdapterInputs
    ) -> list[Float[Array, "images tokens hidden"]]:
        """By one product, or by one each where devices share the heads: half of the three is not half of the heads."""
        width = x.shape[-1]
        if tensor_devices() == 1:
            return jnp.split(self.qkv(x, adapter), 3, axis=-1)
        return [self.qkv(x, adapter, slice(i * width, (i + 1) * width)) for i in range(3)]


class PatchMerger(nnx.Module):
    """Concatenates the patches of a group and maps them to the text decoder's width."""

    def __init__(self, config: Qwen2_5_VLConfig, *, rngs: nnx.Rngs) -> None:
        vision = config.vision
        linear = linear_factory(config, ())
        width = vision.hidden * vision.merge**2
        self.norm = RMSNorm(vision.hidden, EPSILON, rngs=rngs, param_dtype=config.param_dtype)
        self.up: Linear = linear(width, width, ("embed", "mlp"), rngs=rngs, bias=True)
        self.down: Linear = linear(width, vision.out, ("mlp", "embed"), rngs=rngs, bias=True)

    def __call__(self, x: Float[Array, "images groups patches hidden"]) -> Float[Array, "images groups out"]:
        """Merges every group into one token."""
        merged = self.norm(x).reshape(*x.shape[:2], -1)
        return self.down(jax.nn.gelu(self.up(merged), approximate=False))


class VisionTower(nnx.Module):
    """Images to tokens of the text decoder's width, one per group of patches, in raster order."""

    def __init__(self, config: Qwen2_5_VLConfig, *, rngs: nnx.Rngs) -> None:
        vision = config.vision
        self.patch_embed = linear_factory(config, ())(vision.patch_inputs, vision.hidden, ("patch", "embed"), rngs=rngs)
        self.blocks = stack_layers(lambda keys: VisionBlock(config, rngs=keys), vision.depth, rngs)
        self.merger = PatchMerger(config, rngs=rngs)
        self.config = config

    def __call__(
        self, images: UInt8[Array, "images height width channels"], key: Key[Array, ""] | None = None
    ) -> Float[Array, "images groups out"]:
        """Encodes images of one size.

        Args:
            images: RGB; sides must be multiples of ``vision.factor``.
            key: for dropout in the adapters; None switches it off.

        Raises:
            UserError: a side of the wrong size.

        """
        return self.run(images, key, collect=False)[0]

    def run(
        self, images: UInt8[Array, "images height width channels"], key: Key[Array, ""] | None, collect: bool
    ) -> tuple[Float[Array, "images groups out"], Float[Array, "depth images groups patches hidden"] | None]:
        """As a call, and also returns the tokens after every block, in raster order, if ``collect``."""
        vision = self.config.vision
        grid = (images.shape[1] // vision.factor, images.shape[2] // vision.factor)
        x = self._embed(image.patchify(images, vision.patch, vision.merge))
        x = jnp.asarray(image.to_windows(x, grid, vision.window_groups))
        count, groups, unit, hidden = x.shape
        angles = window_angles(grid, self.config)
        area = tuple((r.windows, r.window_size * unit) for r in image.regions(*grid, vision.window_groups))
        full = tuple(i in vision.full_attention for i in range(vision.depth))
        segments = [((1, groups * unit),) if is_full else area for is_full in full]

        def call(block: VisionBlock, x: Array, adapter: AdapterInputs, kind: int) -> Array:
            return block(x, angles, segments[kind], adapter)

        keys = None if key is None else jax.random.split(key, vision.depth)
        x, collected = run_layers(
            self.blocks,
            call,
            x.reshape(count, groups * unit, hidden),
            per_layer=AdapterInputs(key=keys),
            period=find_period(full),
            remat=self.config.remat,
            unroll=self.config.scan_unroll,
            collect=collect,
        )
        merged = self.merger(x.reshape(count, groups, unit, hidden))
        out = image.from_windows(merged, grid, vision.window_groups)
        if collected is None:
            return out, None
        raster = image.from_windows(collected.reshape(-1, groups, unit * hidden), grid, vision.window_groups)
        return out, raster.reshape(vision.depth, count, groups, unit, hidden)

    def _embed(
        self, patches: Float[Array, "images groups patches pixels"]
    ) -> Float[Array, "images groups patches hidden"]:
        """The patch embedding. A still image repeats in time, so the kernel's time steps can be added first."""
        vision, kernel = self.config.vision, self.patch_embed.kernel[...]
        kernel = kernel.reshape(vision.channels, vision.temporal_patch, vision.patch**2, vision.hidden).sum(1)
        flat = patches.astype(self.config.dtype).reshape(-1, patches.shape[-1])
        embedded = matmul(flat, kernel.reshape(-1, vision.hidden))
        return split_batch(embedded.reshape(*patches.shape[:-1], vision.hidden))


def window_angles(grid: tuple[int, int], config: Qwen2_5_VLConfig) -> Angles:
    """Rotations of all patches, in the order of the windows."""
    vision = config.vision
    merge = vision.merge
    rows, columns = np.indices((grid[0] * merge, grid[1] * merge))

    def order(plane: np.ndarray) -> Any:
        groups: Any = plane.reshape(grid[0], merge, grid[1], merge).transpose(0, 2, 1, 3)
        return image.to_windows(groups.reshape(1, grid[0] * grid[1], merge**2), grid, vision.window_groups).reshape(-1)

    return patch_angles(order(rows), order(columns), vision.hidden // vision.heads)
