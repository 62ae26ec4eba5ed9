"""Real-time chunking: against the formula with a whole Jacobian, and on a flow whose best velocity is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from wmjax.core.handover import Handover
from wmjax.models.heads.base import HeadSizes, Known
from wmjax.models.heads.flow import FlowConfig, FlowHead, guided, integrate

CHUNK, ARM, TOKEN, STEPS = 8, 2, 6, 5
HANDOVER = Handover("rtc", CHUNK, horizon=3, delay=2)
WEIGHT = HANDOVER.weights()


def make(gripper: str = "regress", solver: str = "euler") -> FlowHead:
    sizes = HeadSizes(hidden=8, width=8, layers=1, heads=2)
    config = FlowConfig(gripper=gripper, draws=1, steps=STEPS, solver=solver)
    grippers = int(gripper == "binary")
    head = FlowHead(
        config, sizes, hidden_dim=TOKEN, action_dim=ARM + grippers, grippers=grippers, chunk=CHUNK, rngs=nnx.Rngs(0)
    )
    head.out.kernel[...] = 0.5 * jax.random.normal(jax.random.key(2), head.out.kernel.shape)
    return head


inpaint = jax.jit(lambda head, tokens, keys, action, weight: head.inpaint(tokens, keys, Known(action, weight)))
TOKENS, KEYS = jax.random.normal(jax.random.key(1), (3, CHUNK, TOKEN)), jax.random.split(jax.random.key(0), 3)
ACTION = jax.random.normal(jax.random.key(3), (3, CHUNK, ARM))


def written_out(head: FlowHead, row: int) -> np.ndarray:
    """Equations 1 to 4 of the paper for one row, step by step, with the Jacobian as a matrix."""
    condition = head.condition(TOKENS[row : row + 1])
    noise = jax.random.normal(KEYS[row], (CHUNK, ARM))

    @jax.jit
    def expected(x: jax.Array, time: jax.Array) -> tuple[jax.Array, jax.Array]:
        slope = head.velocity(x.reshape(1, 1, CHUNK, ARM), jnp.full((1, 1), time), condition).reshape(-1)
        return x + (1 - time) * slope, slope

    jacobian = jax.jit(jax.jacobian(lambda x, time: expected(x, time)[0]))
    x = np.asarray(noise, np.float64).reshape(-1)
    for i in range(STEPS):
        time = i / STEPS
        clean, slope = expected(jnp.asarray(x, jnp.float32), jnp.float32(time))
        error = np.repeat(WEIGHT, ARM) * (np.asarray(ACTION[row]).reshape(-1) - clean)
        pull = error @ np.asarray(jacobian(jnp.asarray(x, jnp.float32), jnp.float32(time)))
        spread = (1 - time) ** 2 / (time**2 + (1 - time) ** 2)
        scale = min(5.0, (1 - time) / (time * spread)) if time else 5.0
        x = x + (slope + scale * pull) / STEPS
    return x.reshape(CHUNK, ARM)


def test_it_is_the_papers_algorithm_in_every_row() -> None:
    head = make()
    found = inpaint(head, TOKENS, KEYS, ACTION, WEIGHT)
    for row in range(3):
        np.testing.assert_allclose(found[row], written_out(head, row), atol=2e-4)


def test_rows_do_not_depend_on_each_other() -> None:
    head = make()
    found = inpaint(head, TOKENS, KEYS, ACTION, WEIGHT)
    other = inpaint(head, TOKENS.at[1].add(1.0), KEYS, ACTION.at[2].add(1.0), WEIGHT)
    np.testing.assert_array_equal(other[0], found[0])
    assert jnp.abs(other - found)[1:].max(axis=(1, 2)).min() > 1e-2


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_what_is_known_with_weight_zero_changes_nothing(solver: str) -> None:
    head = make("binary", solver)
    known = jnp.pad(ACTION, ((0, 0), (0, 0), (0, 1)), constant_values=7.0)
    found = inpaint(head, TOKENS, KEYS, known, np.zeros(CHUNK, np.float32))
    plain = jax.jit(lambda head, tokens, keys: head.sample(tokens, keys))(head, TOKENS, KEYS)
    np.testing.assert_allclose(found, plain, atol=1e-5)
    led = inpaint(head, TOKENS, KEYS, known, WEIGHT)
    assert np.isfinite(led).all() and jnp.abs(led - plain)[..., :ARM].max() > 0.1
    np.testing.assert_array_equal(led[..., ARM], plain[..., ARM])  # a classified gripper is not led


COVARIANCE = 0.95 ** np.abs(np.subtract.outer(np.arange(CHUNK), np.arange(CHUNK)))
"""Of Gaussian chunks whose neighbouring steps are alike."""


def best_velocity(x: jax.Array, time: jax.Array) -> jax.Array:
    """E[action - noise | x] for x = (1 - t) noise + t action, per action dimension, [..., chunk, action]."""
    total = time**2 * COVARIANCE + (1 - time) ** 2 * np.eye(CHUNK)
    gain = jnp.linalg.solve(total, time * COVARIANCE - (1 - time) * np.eye(CHUNK)).T
    return jnp.einsum("st,...ta->...sa", gain, x)


def test_chunks_of_a_known_distribution_continue_the_one_before() -> None:
    old, noise = jax.random.normal(jax.random.key(5), (2, 400, CHUNK, ARM))
    old = jnp.einsum("st,bta->bsa", np.linalg.cholesky(COVARIANCE), old)
    previous = jnp.pad(old[:, HANDOVER.horizon :], ((0, 0), (0, HANDOVER.horizon), (0, 0)))
    field = guided(best_velocity, previous, WEIGHT[:, None])
    led = jax.jit(lambda x: integrate(field, x, 10, "euler"))(noise)
    free = jax.jit(lambda x: integrate(best_velocity, x, 10, "euler"))(noise)
    committed = HANDOVER.committed

    def error(chunk: jax.Array) -> float:
        return float(jnp.sqrt(jnp.mean(jnp.square(chunk - previous)[:, :committed])))

    def jump(chunk: jax.Array) -> float:
        return float(jnp.sqrt(jnp.mean(jnp.square(chunk[:, committed] - previous[:, committed - 1]))))

    assert error(free) > 1.2 and error(led) < 0.1
    ordinary = np.sqrt(2 * (1 - 0.95))
    assert jump(free) > 4 * ordinary and jump(led) == pytest.approx(ordinary, rel=0.2)
    # What lies beyond the overlap is still drawn from the distribution.
    assert float(jnp.std(led[:, -1])) == pytest.approx(1.0, abs=0.15)
