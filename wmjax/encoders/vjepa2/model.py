"""V-JEPA 2 encoder in Flax NNX, numerically the ``encoder`` of ``transformers.VJEPA2Model``.

A pre-norm vision transformer over space-time tubelets with 3-D rotary positions, exact GELU and no class
token. Attention is bidirectional within a clip, so a clip must never contain frames later than its own time.
Source: Assran et al. 2025, "V-JEPA 2" (arXiv:2506.09985), and the Hugging Face port's parameter names.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt8

from wmjax.core.errors import UserError
from wmjax.encoders.vjepa2.config import VJEPA2Config
from wmjax.encoders.vjepa2.pixels import preprocess
from wmjax.encoders.vjepa2.rotary import rotary_table
from wmjax.models.nn.attention import attention
from wmjax.models.nn.stack import annotate, run_layers, stack_layers


def rotate(
    x: Float[Array, "batch tokens heads head_dim"],
    cos: Float[Array, "tokens head_dim"],
    sin: Float[Array, "tokens head_dim"],
) -> Float[Array, "batch tokens heads head_dim"]:
    """Applies the rotary table to queries or keys (float32), pairs interleaved."""
    even, odd = x[..., ::2], x[..., 1::2]
    turned = jnp.stack([-odd, even], axis=-1).reshape(x.shape)
    return x * cos[:, None] + turned * sin[:, None]


def _linear(in_features: int, out_features: int, axes: tuple[str | None, str | None], **kw: Any) -> nnx.Linear:
    """A linear layer with logical axis names and the reference's truncated normal of std 0.02."""
    init = nnx.initializers.truncated_normal(0.02)
    return nnx.Linear(
        in_features,
        out_features,
        kernel_init=annotate(init, *axes),
        bias_init=annotate(nnx.initializers.zeros_init(), axes[1]),
        **kw,
    )


def _norm(config: VJEPA2Config, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm in float32, with the two-pass variance of the reference."""
    return nnx.LayerNorm(
        config.hidden_size, epsilon=config.layer_norm_eps, dtype=jnp.float32, use_fast_variance=False, rngs=rngs
    )


class EncoderLayer(nnx.Module):
    """One pre-norm block: rotary self-attention, then an MLP."""

    def __init__(self, config: VJEPA2Config, *, dtype: Any, rngs: nnx.Rngs) -> None:
        width, mlp = config.hidden_size, config.mlp_size
        kw = {"dtype": dtype, "rngs": rngs}
        self.config, self.dtype = config, dtype
        self.norm1, self.norm2 = _norm(config, rngs), _norm(config, rngs)
        self.query = _linear(width, width, ("embed", "heads"), **kw)
        self.key = _linear(width, width, ("embed", "heads"), **kw)
        self.value = _linear(width, width, ("embed", "heads"), **kw)
        self.proj = _linear(width, width, ("heads", "embed"), **kw)
        self.fc1 = _linear(width, mlp, ("embed", "mlp"), **kw)
        self.fc2 = _linear(mlp, width, ("mlp", "embed"), **kw)

    def attend(self, x: Float[Array, "batch tokens dim"], cos: Array, sin: Array) -> Float[Array, "batch tokens dim"]:
        """Multi-head self-attention over all tokens of the clip; rotation and softmax in float32."""
        batch, tokens, _ = x.shape
        heads = (batch, tokens, self.config.num_heads, self.config.head_dim)
        query, key, value = (f(x).reshape(heads) for f in (self.query, self.key, self.value))
        query = rotate(query.astype(jnp.float32), cos, sin).astype(self.dtype)
        key = rotate(key.astype(jnp.float32), cos, sin).astype(self.dtype)
        return self.proj(attention(query, key, value).reshape(x.shape))

    def __call__(self, x: Float[Array, "batch tokens dim"], cos: Array, sin: Array) -> Float[Array, "batch tokens dim"]:
        """Applies the block; the residual stream keeps its dtype."""
        x = x + self.attend(self.norm1(x).astype(self.dtype), cos, sin).astype(x.dtype)
        hidden = jax.nn.gelu(self.fc1(self.norm2(x).astype(self.dtype)), approximate=False)
        return x + self.fc2(hidden).astype(x.dtype)


class VJEPA2Encoder(nnx.Module):
    """The encoder: tubelet embedding, ``num_layers`` stacked and scanned blocks, final LayerNorm."""

    def __init__(self, config: VJEPA2Config, *, dtype: Any = jnp.float32, rngs: nnx.Rngs) -> None:
        self.config, self.dtype = config, dtype
        self.patch_embed = _linear(config.patch_dim, config.hidden_size, ("patch", "embed"), dtype=dtype, rngs=rngs)
        self.layernorm = _norm(config, rngs)
        self.layers = stack_layers(lambda keys: EncoderLayer(config, dtype=dtype, rngs=keys), config.num_layers, rngs)

    def embed(self, clip: Float[Array, "batch time height width 3"]) -> Float[Array, "batch tokens dim"]:
        """Cuts the clip into tubelets (time, row, column order) and projects them. One frame is repeated."""
        p, s = self.config.patch_size, self.config.tubelet_size
        if clip.shape[1] < s:
            clip = jnp.tile(clip, (1, s, 1, 1, 1))
        b, t, h, w, c = clip.shape
        if t % s or h % p or w % p:
            raise UserError(f"clip of {t}x{h}x{w} is not divisible into tubelets of {s}x{p}x{p}")
        x = clip.reshape(b, t // s, s, h // p, p, w // p, p, c).transpose(0, 1, 3, 5, 2, 4, 6, 7)
        return self.patch_embed(x.reshape(b, -1, self.config.patch_dim)).astype(jnp.float32)

    def hidden_states(
        self, clip: Float[Array, "batch time height width 3"], collect: bool = True
    ) -> tuple[Float[Array, "batch tokens dim"], Float[Array, "layers batch tokens dim"] | None]:
        """The normalised output and, if collected, every block's raw output."""
        x = self.embed(clip)
        cos, sin = (jnp.asarray(t) for t in rotary_table(self.config.head_dim, self.config.grid_size, x.shape[1]))
        x, outputs = run_layers(self.layers, lambda layer, x, _e, _k: layer(x, cos, sin), x, collect=collect)
        return self.layernorm(x), outputs

    def __call__(self, clip: Float[Array, "batch time height width 3"]) -> Float[Array, "batch tubelets patches dim"]:
        """Encodes a normalised clip (see :func:`preprocess`).

        Returns:
            float32 tokens ``[batch, time / tubelet, (height / patch) * (width / patch), dim]``.

        """
        out, _ = self.hidden_states(clip, collect=False)
        patches = (clip.shape[2] // self.config.patch_size) * (clip.shape[3] // self.config.patch_size)
        return out.reshape(out.shape[0], -1, patches, out.shape[-1])


def pool_last_tubelet(
    tokens: Float[Array, "batch tubelets patches dim"], grid: int
) -> Float[Array, "batch pooled dim"]:
    """Mean-pools the last tubelet's square token grid to ``grid`` x ``grid`` (0: no pooling).

    Raises:
        UserError: the token grid is not divisible by ``grid``.

    """
    last = tokens[:, -1]
    batch, patches, dim = last.shape
    side = round(patches**0.5)
    if grid == 0 or grid == side:
        return last
    if side * side != patches or side % grid:
        raise UserError(f"pooling grid {grid} does not divide the encoder's {side}x{side} tokens; choose a divisor")
    cell = side // grid
    return last.reshape(batch, grid, cell, grid, cell, dim).mean(axis=(2, 4)).reshape(batch, grid * grid, dim)


def latents(
    encoder: VJEPA2Encoder, clip: UInt8[Array, "batch time height width 3"], grid: int
) -> Float[Array, "batch pooled dim"]:
    """The latent z(t) of clips that end at t: the last tubelet's tokens, pooled; float32, not normalised.

    The one definition used by latent export (backend ``jax``) and by the policy in a rollout.
    """
    return pool_last_tubelet(encoder(preprocess(clip, encoder.config)), grid)
