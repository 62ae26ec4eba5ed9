"""The implementations of attention compute one function. Those of accelerators run in their interpreter here."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
        allowed = np.broadcast_to(mask[b], (LENGTH, LENGTH)).copy()
        if causal:
            allowed &= np.tri(LENGTH, dtype=bool)
        for h in range(HEADS):
            group = h // (HEADS // KV_HEADS)
            scores = query[b, :, h].astype(np.float64) @ key[b, :, group].T.astype(np.float64) / DIM**0.5
            scores = np.where(allowed, scores, -1e30)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            out[b, :, h] = weights / weights.sum(-1, keepdims=True) @ value[b, :, group]
    return out


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("implementation", ["xla", "splash"])
def test_it_is_attention(inputs, implementation, causal):
    query, key, value, mask = inputs
    run = {"xla": module._xla, "splash": functools.partial(module._splash, interpret=True)}[implementation]
    found = np.asarray(jax.jit(run, static_argnums=4)(query, key, value, mask, causal))
    wanted = by_definition(query, key, value, mask, causal)
    meant = mask if causal else np.ones_like(mask)  # a causal query at left padding sees no valid key
    np.testing.assert_allclose(found[meant], wanted[meant], atol=2e-5)


def test_gradients_of_splash_are_those_of_xla(inputs):
    query, key, value, mask = inputs
    weight = np.random.default_rng(1).normal(size=query.shape).astype(np.float32) * mask[..., None, None]

    def gradients(run):
        return jax.jit(jax.grad(lambda *x: jnp.sum(run(*x, mask, True) * weight), argnums=(0, 1, 2)))(query, key, value)

    ours, splash = gradients(module._xla), gradients(functools.partial(module._splash, interpret=True))
    for a, b in zip(ours, splash, strict=True):
        np.testing.assert_allclose(b, a, atol=1e-4)


def test_an_unknown_implementation_is_named(inputs):
    with pytest.raises(UserError, match=r"unknown attention implementation 'flash'; .*splash"):
        attention(*inputs[:3], implementation="flash")
