"""What both heads share, and the regression head."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models.vla_helpers import fit
from wmjax.core.errors import UserError
from wmjax.core.settings import build
from wmjax.models.heads.base import HEADS, HeadConfig, HeadSizes
from wmjax.models.heads.flow import FlowConfig, FlowHead
from wmjax.models.heads.regression import RegressionHead, elementwise

SIZES = HeadSizes(hidden=16, width=16, layers=1, heads=2)
TOKENS = jax.random.normal(jax.random.key(0), (6, 4, 8))
ACTION = jnp.concatenate(
    [jax.random.normal(jax.random.key(1), (6, 4, 2)), jnp.sign(jax.random.normal(jax.random.key(2), (6, 4, 1)))], -1
)
MASK = jnp.ones((6, 4), bool).at[0, 2:].set(False)
KEY = jax.random.key(3)


sample = jax.jit(lambda head, tokens, key: head.sample(tokens, key))


def make(kind: str, **settings: object) -> RegressionHead | FlowHead:
    config = build(HeadConfig, {"kind": kind, **settings})
    return HEADS.resolve(kind)(config, SIZES, hidden_dim=8, action_dim=3, grippers=1, chunk=4, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("kind", ["regression", "flow"])
@pytest.mark.parametrize("gripper", ["binary", "regress"])
def test_shapes_and_the_binary_gripper(kind: str, gripper: str) -> None:
    action = sample(make(kind, gripper=gripper), TOKENS, KEY)
    assert action.shape == (6, 4, 3)
    assert action.dtype == jnp.float32
    assert bool(jnp.all(jnp.abs(action[..., -1]) == 1.0)) == (gripper == "binary")


@pytest.mark.parametrize("kind", ["regression", "flow"])
@pytest.mark.parametrize("gripper", ["binary", "regress"])
def test_steps_past_the_end_have_no_influence(kind: str, gripper: str) -> None:
    """A new flow head predicts zero velocity whatever its input, so only the targets carry the actions."""
    head = make(kind, gripper=gripper)
    value = jax.jit(jax.value_and_grad(lambda action, mask: head.loss(TOKENS, action, mask, KEY).loss))
    _, gradient = value(ACTION, MASK)
    np.testing.assert_array_equal(gradient[0, 2:], 0.0)
    assert jnp.abs(gradient[0, :2, :2]).min() > 0.0
    assert value(ACTION, jnp.zeros_like(MASK))[0] == 0.0


@pytest.mark.parametrize("kind", ["mse", "l1", "huber"])
def test_the_regression_loss_is_its_formula(kind: str) -> None:
    head = make("regression", regression_loss=kind, gripper="regress")
    error = np.asarray(head.sample(TOKENS, KEY) - ACTION, np.float64)[np.asarray(MASK)]
    size = np.abs(error)
    formula = {"mse": size**2, "l1": size, "huber": np.where(size < 1, size**2 / 2, size - 0.5)}[kind]
    assert head.loss(TOKENS, ACTION, MASK, KEY).loss == pytest.approx(formula.mean(), rel=1e-5)
    np.testing.assert_allclose(
        elementwise(kind, jnp.array([-3.0, 0.0])), {"mse": [9, 0], "l1": [3, 0]}.get(kind, [2.5, 0])
    )


@pytest.mark.parametrize("kind", ["regression", "flow"])
def test_a_regressed_gripper_is_reported_apart_from_the_arm(kind: str) -> None:
    """Its commands of one and the arm's small motions in one mean hid that the arm did not move."""
    head = make(kind, gripper="regress", **({"regression_loss": "mse"} if kind == "regression" else {}))
    out = head.loss(TOKENS, ACTION.at[..., -1].mul(50.0), MASK, KEY)
    before = head.loss(TOKENS, ACTION, MASK, KEY).metrics
    assert out.metrics["action/arm"] == pytest.approx(float(before["action/arm"]), rel=1e-5)
    assert out.metrics["action/gripper"] > 100 * before["action/gripper"]
    dim = ACTION.shape[-1]
    mean = ((dim - 1) * out.metrics["action/arm"] + out.metrics["action/gripper"]) / dim
    assert out.loss == pytest.approx(float(mean), rel=1e-5)


def test_the_gripper_loss_is_weighted_cross_entropy() -> None:
    head, without = make("regression", gripper_weight=0.25), make("regression", gripper_weight=0.0)
    logits = np.asarray(head.gripper.logits(TOKENS), np.float64)[..., 0]
    entropy = np.log1p(np.exp(-logits * np.asarray(ACTION[..., -1])))[np.asarray(MASK)].mean()
    out = head.loss(TOKENS, ACTION, MASK, KEY)
    assert out.metrics["action/gripper"] == pytest.approx(entropy, rel=1e-5)
    assert out.loss - without.loss(TOKENS, ACTION, MASK, KEY).loss == pytest.approx(0.25 * entropy, rel=1e-4)


@pytest.mark.slow
def test_regression_learns_its_tokens() -> None:
    """Actions are a function of the tokens: error far below the constant predictor, gripper right."""
    weights = jax.random.normal(jax.random.key(7), (8, 3)) / 8**0.5
    graph, params = nnx.split(make("regression"))

    def loss(params: nnx.State, key: jax.Array) -> tuple[jax.Array, dict]:
        tokens = jax.nn.standardize(jax.random.normal(key, (32, 4, 8)))  # The head normalises its tokens.
        action = (tokens @ weights).at[..., -1].set(jnp.sign(tokens[..., 0]))
        return nnx.merge(graph, params).loss(tokens, action, jnp.ones((32, 4), bool), key)

    _, metrics = fit(params, loss, 400, 1e-2)
    assert metrics["action/arm_mse"][-20:].mean() < 0.05
    assert metrics["action/gripper_accuracy"][-20:].mean() > 0.95


def test_bad_settings_are_named() -> None:
    with pytest.raises(UserError, match=r"head.time_beta"):
        FlowConfig(time_beta=(1.5, 2.0))
    with pytest.raises(UserError, match=r"head.steps is 0"):
        FlowConfig(steps=0)
    with pytest.raises(UserError, match=r"head_sizes.heads 5"):
        HeadSizes(width=16, heads=5)
