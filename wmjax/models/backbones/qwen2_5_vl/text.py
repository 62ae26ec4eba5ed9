"""The text decoder of Qwen2.5-VL: grouped-query attention, SwiGLU, RMSNorm, multimodal RoPE."""

from typing import Any

from flax import nnx
from jaxtyping import Array, Bool, Float

from wmjax.models.backbones.qwen2_5_vl.config import Qwen2_5_VLConfig
from wmjax.models.backbones.qwen2_5_vl.layers import RMSNorm, SwiGLU, linear_factory
from wmjax.models.backbones.qwen2_5_vl.rope import Angles, rotate
from wmjax.models.nn.attention import attention
from wmjax.models.nn.lora import AdapterInputs


class DecoderLayer(nnx.Module):
    """Pre-norm decoder layer with biases on queries, keys and values only."""

    def __init__(self, config: Qwen2_5_VLConfig, *, rngs: nnx.Rngs) -> None:
        text = config.text
        linear = linear_factory(config, config.lora.targets)
        gain = (2 * text.depth) ** -0.5
        kv_width = text.kv_heads * text.head_dim
        of_queries: dict[str, Any] = {"rngs": rngs, "heads": text.heads}
        of_keys: dict[str, Any] = {"rngs": rngs, "heads": text.kv_heads, "bias": True}
        self.input_norm = RMSNorm(text.hidden, text.norm_epsilon, rngs=rngs, param_dtype=config.param_dtype)
        self.q_proj = linear(text.hidden, text.hidden, ("embed", "heads"), **of_queries, bias=True, name="q_proj")
        self.k_proj = linear(text.hidden, kv_width, ("embed", "kv"), **of_keys, name="k_proj")
        self.v_proj = linear(text.hidden, kv_width, ("embed", "kv"), **of_keys, name="v_proj")
        self.o_proj = linear(text.hidden, text.hidden, ("heads", "embed"), **of_queries, name="o_proj", gain=gain)
        self.post_norm = RMSNorm(text.hidden, text.norm_epsilon, rngs=rngs, param_dtype=config.param_dtype)
        self.mlp = SwiGLU(text.hidden, text.mlp, linear=linear, rngs=rngs, bias=False, out_gain=gain)
        self.head_dim, self.implementation = text.head_dim, config.attention

    def __call__(
        self,
        x: Float[Array, "batch tokens hidden"],
        angles: Angles,
        mask: Bool[Array, "batch tokens"],
        adapter: AdapterInputs,
        last: int | None = None,
    ) -> Float[Array, "batch read hidden"]:
        """Applies the layer; ``mask`` is False at padding. With ``last``, returns so many of the last tokens only."""
        read = slice(None if last is None else -last, None)
        x = x[:, read] + self._attend(self.input_norm(x), angles, mask, adapter, read)
        return x + self.mlp(self.post_norm(x), adapter)

    def _attend(
        self,
        x: Float[Array, "batch tokens hidden"],
        angles: Angles,
        mask: Bool[Array, "batch tokens"],
        adapter: AdapterInputs,
        read: slice,
    ) -> Float[Array, "batch read hidden"]:
        def heads(projected: Float[Array, "batch _ width"]) -> Float[Array, "batch _ heads dim"]:
            return projected.reshape(*projected.shape[:2], -1, self.head_dim)

        cos, sin = angles
        query = rotate(heads(self.q_proj(x[:, read], adapter)), (cos[:, read], sin[:, read]))
        key = rotate(heads(self.k_proj(x, adapter)), angles)
        value = heads(self.v_proj(x, adapter))
        out = attention(query, key, value, mask=mask, causal=True, implementation=self.implementation)
        return self.o_proj(out.reshape(*out.shape[:2], -1), adapter)
