"""The Prophet: where it starts, what it looks at, what its losses mean, that it learns."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models.vla_helpers import fit
from tests.variants import VARIANTS
from wmjax.core.errors import UserError
from wmjax.models.world.injection import InjectionConfig
from wmjax.models.world.memory import WorldMemory
from wmjax.models.world.prophet import Prophet, ProphetConfig, WorldLossConfig, world_loss, world_metrics

SHAPE = ProphetConfig(width=16, layers=2, heads=2, history=3, future=2, tokens=4, latent_dim=8)


def history(seed: int = 0, batch: int = 5) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (batch, SHAPE.history, SHAPE.tokens, SHAPE.latent_dim))


@functools.cache
def awake(target: str = "delta", hidden_dim: int | None = None) -> Prophet:
    prophet = Prophet(SHAPE, target=target, hidden_dim=hidden_dim, rngs=nnx.Rngs(0))
    prophet.out.kernel[...] = jax.random.normal(jax.random.key(9), prophet.out.kernel.shape)
    return prophet


run = jax.jit(lambda prophet, latents: prophet(latents))


def test_a_new_delta_prophet_is_the_copy_baseline() -> None:
    latents = history()
    prediction = run(Prophet(SHAPE, rngs=nnx.Rngs(0)), latents)
    np.testing.assert_array_equal(prediction, jnp.repeat(latents[:, -1:], SHAPE.future, axis=1))


def test_delta_adds_the_current_latent_and_absolute_does_not() -> None:
    latents = history()
    difference = run(awake("delta"), latents) - run(awake("absolute"), latents)
    np.testing.assert_allclose(difference, jnp.repeat(latents[:, -1:], SHAPE.future, axis=1), atol=1e-5)


@pytest.mark.parametrize("frame", range(SHAPE.history))
def test_every_frame_of_the_history_matters(frame: int) -> None:
    latents, prophet = history(), awake()
    moved = run(prophet, latents.at[:, frame, 0].add(1.0))
    assert jnp.abs(moved - run(prophet, latents)).max() > 1e-3


def test_prediction_from_hidden_states_ignores_padding_and_sees_the_rest() -> None:
    prophet, mask = awake(hidden_dim=6), jnp.arange(7)[None] >= jnp.array([[0], [2]])
    hidden = jax.random.normal(jax.random.key(1), (2, 7, 6))
    current = history(batch=2)[:, -1]
    predict = jax.jit(prophet.predict_from_hidden)
    expected = predict(hidden, mask, current)
    np.testing.assert_array_equal(predict(hidden.at[1, :2].set(7.0), mask, current), expected)
    assert jnp.abs(predict(hidden.at[1, 2].set(7.0), mask, current) - expected)[1].max() > 1e-3
    np.testing.assert_allclose(predict(hidden, mask, current + 1.0), expected + 1.0, atol=1e-5)


def truth(seed: int = 3) -> tuple[jax.Array, jax.Array, jax.Array]:
    future = jax.random.normal(jax.random.key(seed), (5, SHAPE.future, SHAPE.tokens, SHAPE.latent_dim))
    mask = jnp.ones((5, SHAPE.future), bool).at[0, 1].set(False)
    return future, history()[:, -1], mask


def test_copy_has_normalised_error_one_and_skill_zero_truth_has_zero_and_one() -> None:
    future, current, mask = truth()
    config = WorldLossConfig()
    copy = jnp.repeat(current[:, None], SHAPE.future, axis=1)
    assert world_loss(config, copy, future, current, mask) == pytest.approx(1.0, abs=1e-6)
    assert world_loss(config, future, future, current, mask) == 0.0
    assert world_metrics(copy, future, current, mask)["world/skill_2"] == pytest.approx(0.0, abs=1e-6)
    assert world_metrics(future, future, current, mask)["world/skill_1"] == 1.0


def test_losses_equal_their_formulas() -> None:
    future, current, mask = truth()
    prediction = future + 0.7 * jax.random.normal(jax.random.key(5), future.shape)
    p, f, c, m = (np.asarray(x, np.float64) for x in (prediction, future, current[:, None], mask))
    error = np.abs(p - f)
    smooth = np.where(error < 1, 0.5 * error**2, error - 0.5).mean((2, 3))
    dp, df = p - c, f - c
    cosine = (dp * df).sum(-1) / np.sqrt(((dp**2).sum(-1) + 1e-2) * ((df**2).sum(-1) + 1e-2))
    expected = 2.0 * (smooth * m).sum() / m.sum() + 3.0 * ((1 - cosine).mean(-1) * m).sum() / m.sum()
    config = WorldLossConfig(smooth_l1=2.0, cosine=3.0, normalised_mse=0.0)
    assert world_loss(config, prediction, future, current, mask) == pytest.approx(expected, rel=1e-5)


def test_frames_past_the_end_do_not_count() -> None:
    future, current, mask = truth()
    config = WorldLossConfig(smooth_l1=1.0, cosine=1.0, normalised_mse=1.0)
    prediction = 0.5 * future
    changed = future.at[0, 1].set(100.0)
    assert world_loss(config, prediction, changed, current, mask) == world_loss(
        config, prediction, future, current, mask
    )
    assert jnp.isfinite(world_loss(config, prediction, future, current, jnp.zeros_like(mask)))


def test_collapse_shows_in_the_variance_ratio() -> None:
    future, current, mask = truth()
    assert world_metrics(jnp.zeros_like(future), future, current, mask)["world/variance_ratio"] == 0.0
    assert world_metrics(future, future, current, mask)["world/variance_ratio"] == pytest.approx(1.0)
    # A dead network on top of z(t) varies as z(t) does; what it adds does not.
    dead = world_metrics(current[:, None] + jnp.ones_like(future), future, current, mask)
    assert dead["world/variance_ratio"] > 0.3 and dead["world/change_ratio"] < 1e-6
    half = world_metrics(current[:, None] + 0.5 * (future - current[:, None]), future, current, mask)
    assert half["world/change_ratio"] == pytest.approx(0.25, rel=1e-4)
    # A small variance about a large mean is not lost in float32's rounding of their squares.
    nearly = world_metrics(100.0 + 1e-2 * future, future, current, mask)
    assert nearly["world/variance_ratio"] == pytest.approx(1e-4, rel=1e-2)
    # Frames past the end do not count.
    ended = mask.at[:, 1].set(False)
    wild = world_metrics(future.at[:, 1].set(1e3 * future[:, 1]), future, current, ended)
    assert wild["world/change_ratio"] == pytest.approx(1.0, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "objective",
    [
        WorldLossConfig(),
        pytest.param(WorldLossConfig(cosine=1.0, normalised_mse=0.0, smooth_l1=1.0), marks=pytest.mark.long),
        pytest.param(WorldLossConfig("absolute"), marks=pytest.mark.long),
    ],
)
def test_it_learns_to_extrapolate_motion(objective: WorldLossConfig) -> None:
    """z moves with constant velocity, which no single frame shows: skill needs the history."""
    graph, params = nnx.split(Prophet(SHAPE, target=objective.target, rngs=nnx.Rngs(0)))

    def loss(params: nnx.State, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        start, velocity = 0.7 * jax.random.normal(key, (2, 32, 1, SHAPE.tokens, SHAPE.latent_dim))
        steps = jnp.arange(-2.0, SHAPE.future + 1.0)[:, None, None]
        past, future = jnp.split(start + velocity * steps, [SHAPE.history], axis=1)
        mask = jnp.ones(future.shape[:2], bool)
        prediction = nnx.merge(graph, params)(past)
        skill = world_metrics(prediction, future, past[:, -1], mask)["world/skill_2"]
        return world_loss(objective, prediction, future, past[:, -1], mask), skill

    _, skill = fit(params, loss, 400, 5e-3)
    assert skill[0] < 0.1
    assert skill[-10:].mean() > 0.5


@pytest.mark.parametrize("tokens", [1, SHAPE.tokens])
@pytest.mark.parametrize("layer_norm", [True, False])
def test_layer_norm_takes_scale_and_offset_of_every_token_out_of_the_world(layer_norm: bool, tokens: int) -> None:
    shape = dataclasses.replace(SHAPE, tokens=tokens)
    objective = WorldLossConfig(layer_norm=layer_norm)
    memory = WorldMemory(
        VARIANTS["e2"], objective, shape, InjectionConfig(width=16, heads=2), hidden_dim=8, rngs=nnx.Rngs(0)
    )
    latents = history()
    pooled = latents.mean(2, keepdims=True) if tokens == 1 else latents
    centred = pooled - pooled.mean(-1, keepdims=True)
    scaled = centred / np.sqrt(centred.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(memory.prophet_latents(latents), scaled if layer_norm else pooled, atol=1e-5)
    # A new Prophet copies: the world that is z(t), louder and shifted, is then predicted without error, or is not.
    now = memory.prepare(latents)[:, -1:]
    copied = jnp.repeat(now, SHAPE.future, 1)
    future = 3.0 * jnp.repeat(latents[:, -1:], SHAPE.future, 1) + 5.0
    loss, _ = memory.loss(copied, latents, future, jnp.ones(future.shape[:2], bool))
    assert (loss < 1e-4) == layer_norm


def test_bad_settings_are_named() -> None:
    with pytest.raises(UserError, match=r"prophet.heads 5"):
        ProphetConfig(width=16, heads=5)
    with pytest.raises(UserError, match=r"prophet.future is 0"):
        ProphetConfig(future=0)
    with pytest.raises(UserError, match=r"all 0"):
        WorldLossConfig(normalised_mse=0.0)
