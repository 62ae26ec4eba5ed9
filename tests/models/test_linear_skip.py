"""The Prophet's linear part: what it reads, what it adds, and that a Prophet without it is what it was."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models.test_prophet import SHAPE, awake, history, run
from wmjax.core.errors import UserError
from wmjax.diagnostics.prophet_skill import ridge_features
from wmjax.models.parameters import to_named
from wmjax.models.world.linear_skip import linear_features
from wmjax.models.world.prophet import Prophet

RANK = 3


def linear_prophet() -> Prophet:
    prophet = Prophet(dataclasses.replace(SHAPE, linear_rank=RANK), rngs=nnx.Rngs(0))
    prophet.out.kernel[...] = jax.random.normal(jax.random.key(9), prophet.out.kernel.shape)
    return prophet


def test_without_a_rank_the_prophet_is_what_it_was() -> None:
    """The rest starts from the same values, so that runs with and without differ in the linear part only."""
    plain, other = (to_named(nnx.state(prophet)) for prophet in (awake(), linear_prophet()))
    assert other.keys() - plain.keys() == {"linear/down/value", "linear/up/value", "linear/bias/value"}
    for name, value in plain.items():
        np.testing.assert_array_equal(other[name], value, err_msg=name)
    np.testing.assert_array_equal(run(linear_prophet(), history()), run(awake(), history()))


def test_its_features_are_those_of_the_ridge_regression() -> None:
    latents = history()
    found = linear_features(latents)
    for token in range(SHAPE.tokens):
        np.testing.assert_allclose(found[:, token], ridge_features(np.asarray(latents), token), rtol=1e-5, atol=1e-6)


def test_every_position_has_its_own_map() -> None:
    latents, prophet = history(), linear_prophet()
    assert prophet.linear is not None
    up = 0.1 * jax.random.normal(jax.random.key(2), prophet.linear.up.shape)
    before = run(prophet, latents)
    prophet.linear.up[...] = up.at[1:].set(0.0)
    prophet.linear.bias[...] = prophet.linear.bias[...].at[2].set(0.5)
    added = np.asarray(run(prophet, latents) - before)
    codes = np.asarray(linear_features(latents)[:, 0] @ prophet.linear.down[0])
    expected = (codes @ np.asarray(up[0])).reshape(len(latents), SHAPE.future, SHAPE.latent_dim)
    np.testing.assert_allclose(added[:, :, 0], expected, atol=1e-5)
    np.testing.assert_allclose(added[:, :, 2], 0.5, atol=1e-5)
    np.testing.assert_allclose(added[:, :, (1, 3)], 0.0, atol=1e-6)


def test_a_prophet_of_hidden_states_has_none() -> None:
    assert Prophet(dataclasses.replace(SHAPE, linear_rank=RANK), hidden_dim=6, rngs=nnx.Rngs(0)).linear is None


def test_a_rank_above_that_of_any_map_is_refused() -> None:
    most = SHAPE.future * SHAPE.latent_dim
    assert dataclasses.replace(SHAPE, linear_rank=most).linear_rank == most
    with pytest.raises(UserError, match=rf"prophet\.linear_rank is {most + 1}, above the {most} values"):
        dataclasses.replace(SHAPE, linear_rank=most + 1)


def test_its_gradient_reaches_every_factor() -> None:
    graph, state = nnx.split(linear_prophet())

    def loss(state: nnx.State) -> jax.Array:
        return jnp.sum(jnp.square(nnx.merge(graph, state)(history()) - 1.0))

    state["linear"]["up"][...] = jnp.ones_like(state["linear"]["up"][...])
    found = to_named(jax.jit(jax.grad(loss))(state))
    assert all(jnp.abs(found[f"linear/{name}/value"]).max() > 0.0 for name in ("down", "up", "bias"))
