"""The one attention function of all models, with a selectable implementation.

``xla`` runs everywhere. ``cudnn`` is the flash attention of cuDNN (GPU, half precision), which comes with JAX. Both
compute the same function.
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from wmjax.core.errors import unknown_name

Implementation = Literal["xla", "cudnn"]

MASKED = -1e30
"""Score of a masked pair: finite, so that a row without any valid key stays finite as well."""


def attention(
    query: Float[Array, "batch target heads dim"],
    key: Float[Array, "batch source kv_heads dim"],
    value: Float[Array, "batch source kv_heads dim"],
    *,
    mask: Bool[Array, "batch source"] | None = None,
    causal: bool = False,
    implementation: str = "xla",
) -> Float[Array, "batch target heads dim"]:
    """Scaled dot-product attention, ``softmax(q k^T / sqrt(dim)) v``, softmax in float32.

    Query heads share key/value heads in consecutive groups of ``heads / kv_heads`` (grouped-query attention).

    Args:
        query: queries, not scaled.
        key: keys.
        value: values.
        mask: True where a key may be attended to. The output of a query without any valid key is arbitrary.
        causal: whether target ``t`` sees only sources ``<= t``.
        implementation: the kernel that computes it, an :data:`Implementation`.

    Raises:
        UserError: unknown implementation.

    """
    if implementation == "xla":
        return _xla(query, key, value, mask, causal)
    if implementation == "cudnn":
        return _fused(query, key, value, mask, causal)
    raise unknown_name("attention implementation", implementation, get_args(Implementation))


def _xla(
    query: Float[Array, "batch target heads dim"],
    key: Float[Array, "batch source kv_heads dim"],
    value: Float[Array, "batch source kv_heads dim"],
    mask: Bool[Array, "batch source"] | None,
    causal: bool,
) -> Float[Array, "batch target heads dim"]:
    """Two batched matrix products; the queries of one key/value head form one matrix, so keys are never copied.

    Samples and heads stay two axes: joined, an axis that is split both ways has no layout, and would be gathered.
    """
    batch, target, heads, dim = query.shape
    source, kv_heads = key.shape[1], key.shape[2]
    groups = heads // kv_heads
    q = query.reshape(batch, target, kv_heads, groups, dim).transpose(0, 2, 3, 1, 4)
    q = q.reshape(batch, kv_heads, groups * target, dim)
    k, v = key.transpose(0, 2, 3, 1), value.transpose(0, 2, 1, 3)
    scores = jnp.matmul(q, k, preferred_element_type=jnp.float32) * dim**-0.5
    scores = scores.reshape(batch, kv_heads, groups, target, source)
    if causal:
        scores = jnp.where(jnp.tri(target, source, source - target, dtype=bool), scores, MASKED)
    if mask is not None:
        scores = jnp.where(mask[:, None, None, None, :], scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    out = jnp.matmul(weights.reshape(batch, kv_heads, groups * target, source), v)
    out = out.reshape(batch, kv_heads, groups, target, dim).transpose(0, 3, 1, 2, 4)
    return out.reshape(batch, target, heads, dim)


def _fused(
    query: Float[Array, "batch target heads dim"],
    key: Float[Array, "batch source kv_heads dim"],
    value: Float[Array, "batch source kv_heads dim"],
    mask: Bool[Array, "batch source"] | None,
    causal: bool,
    implementation: Literal["xla", "cudnn"] = "cudnn",
) -> Float[Array, "batch target heads dim"]:
    """JAX's own attention. cuDNN takes a mask of every pair, ``[batch, 1, target, source]``, and broadcasts heads only.

    ``implementation`` is JAX's: its ``xla`` runs the same call, mask included, where there is no GPU.
    """
    pairs, (batch, target), source = None, query.shape[:2], key.shape[1]
    if mask is not None:
        pairs = jnp.broadcast_to(mask[:, None, None, :], (batch, 1, target, source))
    if causal and target != source:  # JAX aligns the first target with the first source, we the last with the last
        seen = jnp.broadcast_to(jnp.tri(target, source, source - target, dtype=bool), (batch, 1, target, source))
        pairs, causal = seen if pairs is None else pairs & seen, False
    return jax.nn.dot_product_attention(query, key, value, mask=pairs, is_causal=causal, implementation=implementation)
