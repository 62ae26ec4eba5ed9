"""The implementations of attention compute one function. cuDNN's call is computed by XLA here, and lowered for CUDA."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from wmjax.core.errors import UserError
from wmjax.models.nn import attention as module
from wmjax.models.nn.attention import attention

BATCH, LENGTH, HEADS, KV_HEADS, DIM = 2, 128, 4, 2, 128


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    query = rng.normal(size=(BATCH, LENGTH, HEADS, DIM)).astype(np.float32)
    key, value = rng.normal(size=(2, BATCH, LENGTH, KV_HEADS, DIM)).astype(np.float32)
    mask = np.ones((BATCH, LENGTH), bool)
    mask[0, :17], mask[1, -9:] = False, False
    return query, key, value, mask


def by_definition(query, key, value, mask, causal):
    """Softmax attention in float64, head by head."""
    out = np.zeros(query.shape)
    for b in range(BATCH):
        allowed = np.broadcast_to(mask[b], (query.shape[1], LENGTH)).copy()
        if causal:
            allowed &= np.tri(LENGTH, dtype=bool)[-query.shape[1] :]
        for h in range(HEADS):
            group = h // (HEADS // KV_HEADS)
            scores = query[b, :, h].astype(np.float64) @ key[b, :, group].T.astype(np.float64) / DIM**0.5
            scores = np.where(allowed, scores, -1e30)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            out[b, :, h] = weights / weights.sum(-1, keepdims=True) @ value[b, :, group]
    return out


@pytest.mark.parametrize("targets", [LENGTH, 9])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("implementation", ["xla", "cudnn"])
def test_it_is_attention(inputs, implementation, causal, targets):
    """Also of the last targets alone, each of which sees the sources up to its own."""
    query, key, value, mask = inputs
    query = query[:, -targets:]
    run = {"xla": module._xla, "cudnn": functools.partial(module._fused, implementation="xla")}[implementation]
    found = np.asarray(jax.jit(run, static_argnums=4)(query, key, value, mask, causal))
    wanted = by_definition(query, key, value, mask, causal)
    meant = (mask if causal else np.ones_like(mask))[:, -targets:]  # a causal query at left padding sees no valid key
    np.testing.assert_allclose(found[meant], wanted[meant], atol=2e-5)


def test_gradients_of_the_fused_call_are_those_of_xla(inputs):
    query, key, value, mask = inputs
    weight = np.random.default_rng(1).normal(size=query.shape).astype(np.float32) * mask[..., None, None]

    def gradients(run):
        return jax.jit(jax.grad(lambda *x: jnp.sum(run(*x, jnp.asarray(mask), True) * weight), argnums=(0, 1, 2)))(
            query, key, value
        )

    ours, fused = gradients(module._xla), gradients(functools.partial(module._fused, implementation="xla"))
    for a, b in zip(ours, fused, strict=True):
        np.testing.assert_allclose(b, a, atol=1e-4)


@pytest.mark.parametrize(
    ("tokens", "heads", "kv_heads", "dim", "masked"),
    [(200, 16, 2, 128, True), (256, 16, 16, 80, False), (64, 16, 16, 80, False)],
    ids=["text decoder", "full vision block", "vision window"],
)
def test_cudnn_accepts_the_shapes_of_3b(tokens, heads, kv_heads, dim, masked, monkeypatch):
    """Forward and gradient, lowered for a GPU that is not here; only the installed cuDNN's version is made up."""
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    query = jax.ShapeDtypeStruct((2, tokens, heads, dim), jnp.bfloat16)
    key = jax.ShapeDtypeStruct((2, tokens, kv_heads, dim), jnp.bfloat16)
    mask = jax.ShapeDtypeStruct((2, tokens), jnp.bool_)

    def total(query, key, value, mask):
        given = {"mask": mask, "causal": True} if masked else {}
        return jnp.sum(attention(query, key, value, **given, implementation="cudnn").astype(jnp.float32))

    def calls(function):
        traced = jax.jit(function).trace(query, key, key, mask)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
        return set(re.findall(r"@__cudnn[$]fmha(\w+)", text))

    kind = "ScaleBiasSoftmax" if masked else "Softmax"
    assert calls(total) == {kind}
    assert calls(jax.grad(total, argnums=(0, 1, 2))) == {kind, f"{kind}Backward"}


def test_an_unknown_implementation_is_named(inputs):
    with pytest.raises(UserError, match=r"unknown attention implementation 'flash'; .*xla"):
        attention(*map(jnp.asarray, inputs[:3]), implementation="flash")
