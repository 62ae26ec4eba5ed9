"""Gated cross-attention: closed means absent, bit for bit; how the gate moves is in ``tests/trainer/test_gate.py``."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from wmjax.core.errors import UserError
from wmjax.models.world.injection import GatedCrossAttention, InjectionConfig

run = jax.jit(lambda module, *arguments: module(*arguments))
HIDDEN = jax.random.normal(jax.random.key(0), (4, 3, 8))
MEMORY = jax.random.normal(jax.random.key(1), (4, 2, 5, 6))


def make(gate: float = 0.0, *, per_channel: bool = False) -> GatedCrossAttention:
    config = InjectionConfig(width=16, heads=2, gate_per_channel=per_channel)
    module = GatedCrossAttention(config, hidden_dim=8, latent_dim=6, frames=2, tokens=5, rngs=nnx.Rngs(0))
    module.gate[...] = jnp.full(module.gate.shape, gate)
    return module


@pytest.mark.parametrize("per_channel", [False, True])
def test_a_gate_at_zero_adds_nothing_bit_for_bit(per_channel: bool) -> None:
    closed = make(per_channel=per_channel)
    np.testing.assert_array_equal(run(closed, HIDDEN, MEMORY).tokens, HIDDEN)
    np.testing.assert_array_equal(run(closed, HIDDEN, 1e3 * MEMORY).tokens, HIDDEN)
    assert jnp.abs(run(make(0.5, per_channel=per_channel), HIDDEN, MEMORY).tokens - HIDDEN).max() > 1e-2


def test_at_zero_the_gate_has_a_gradient_and_the_memory_has_none() -> None:
    graph, params = nnx.split(make())

    def loss(params: nnx.State, memory: jax.Array) -> jax.Array:
        return jnp.sum(nnx.merge(graph, params)(HIDDEN, memory).tokens ** 2)

    by_params, by_memory = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, MEMORY)
    assert jnp.abs(by_params["gate"][...]).min() > 1e-3
    np.testing.assert_array_equal(by_memory, 0.0)


def test_the_gate_starts_where_the_setting_says_and_nothing_else_does() -> None:
    config = InjectionConfig(width=16, heads=2, gate_start=0.1)
    other = GatedCrossAttention(config, hidden_dim=8, latent_dim=6, frames=2, tokens=5, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(run(other, HIDDEN, MEMORY).tokens, run(make(0.1), HIDDEN, MEMORY).tokens)


def test_an_empty_memory_leaves_its_sample_alone_and_the_others_unchanged() -> None:
    module, keep = make(0.8), jnp.array([True, False, True, False])
    full, some = (run(module, HIDDEN, MEMORY, kept).tokens for kept in (jnp.ones(4, bool), keep))
    np.testing.assert_array_equal(some[~keep], HIDDEN[~keep])
    np.testing.assert_array_equal(some[keep], full[keep])
    np.testing.assert_allclose(full, run(module, HIDDEN, MEMORY).tokens, rtol=1e-6)  # another graph, another rounding


def test_the_reported_gate_and_ratio_are_those_of_the_sum() -> None:
    out = run(make(0.8), HIDDEN, MEMORY)
    added = np.linalg.norm(out.tokens - HIDDEN, axis=-1).mean(-1)
    assert out.gate == pytest.approx(np.tanh(0.8), rel=1e-6)
    np.testing.assert_allclose(out.ratio, added / np.linalg.norm(HIDDEN, axis=-1).mean(-1), rtol=1e-5)


def test_position_and_time_of_a_memory_token_matter() -> None:
    module = make(1.0)
    out = run(module, HIDDEN, MEMORY).tokens
    assert jnp.abs(run(module, HIDDEN, MEMORY[:, ::-1]).tokens - out).max() > 1e-4
    assert jnp.abs(run(module, HIDDEN, MEMORY[:, :, ::-1]).tokens - out).max() > 1e-4


def test_bad_heads_are_named() -> None:
    with pytest.raises(UserError, match=r"injection.heads 5"):
        InjectionConfig(width=16, heads=5)
