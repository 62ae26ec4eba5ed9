"""Any number of grippers at any place: how actions are normalised, and what both heads do with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from wmjax.core.specs import ActionSpec
from wmjax.data.statistics import clip_action, closing, denormalise_action, normalise_action
from wmjax.data.windows import pad_actions
from wmjax.models.heads.base import HeadSizes
from wmjax.models.heads.flow import FlowConfig, FlowHead
from wmjax.models.heads.regression import RegressionConfig, RegressionHead

SIZES = HeadSizes(hidden=16, width=16, layers=1, heads=2)
RNG = np.random.default_rng
STATE = np.zeros((4, 8), np.float32)
PLACES = [(), (0,), (2,), (0, 3), (1, 4)]


def spec_with(grippers: tuple[int, ...], **more: object) -> ActionSpec:
    """Five dimensions; the grippers open at 0.08 and close at 0."""
    return ActionSpec(
        names=tuple("abcde"),
        units=("",) * 5,
        grippers=grippers,
        gripper_open=(0.08,) * len(grippers),
        gripper_closed=(0.0,) * len(grippers),
        offset=tuple(0.04 if i in grippers else 0.5 for i in range(5)),
        scale=tuple(-0.04 if i in grippers else 2.0 for i in range(5)),
        **more,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("grippers", PLACES)
def test_a_normalised_action_ends_in_its_grippers_and_comes_back(grippers: tuple[int, ...]) -> None:
    spec = spec_with(grippers)
    action = RNG(0).uniform(-3, 3, (4, 6, 5)).astype(np.float32)
    action[..., list(grippers)] = np.where(RNG(1).random((4, 6, len(grippers))) < 0.5, 0.08, 0.0)
    normal = normalise_action(action, spec, STATE)
    arm = len(spec.arm)
    np.testing.assert_allclose(normal[..., :arm], (action[..., list(spec.arm)] - 0.5) / 2.0, rtol=1e-6)
    closed = np.where(action[..., list(grippers)] == 0.0, 1.0, -1.0)
    np.testing.assert_allclose(normal[..., arm:], closed, atol=1e-6)
    np.testing.assert_array_equal(closing(action, spec), closed > 0)
    np.testing.assert_allclose(denormalise_action(normal, spec, STATE), action, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(normalise_action(jnp.asarray(action), spec, STATE)), normal)


def test_actions_are_clipped_to_their_bounds_if_they_have_any() -> None:
    action = np.array([[-2.0, 2.0, 0.5, 9.0, -9.0]], np.float32)
    np.testing.assert_array_equal(clip_action(action, spec_with(())), action)
    bounded = spec_with((), low=(-1.0, -1.0, -1.0, 0.0, 0.0), high=(1.0, 1.0, 1.0, 4.0, 4.0))
    np.testing.assert_array_equal(clip_action(action, bounded), [[-1.0, 1.0, 0.5, 4.0, 0.0]])


def test_past_the_end_a_robot_holds_still_or_repeats_its_last_action() -> None:
    action = RNG(0).normal(size=(1, 3, 5)).astype(np.float32)
    mask = np.array([[True, False, False]])
    np.testing.assert_array_equal(pad_actions(action, mask, spec_with((1,))), action)
    held = pad_actions(action, mask, spec_with((1,), hold=(0.1, 0.0, 0.3, 0.4, 0.5)))
    np.testing.assert_array_equal(held[0, 0], action[0, 0])
    np.testing.assert_allclose(held[0, 1:, [0, 2, 3, 4]].T, [[0.1, 0.3, 0.4, 0.5]] * 2, rtol=1e-6)
    np.testing.assert_array_equal(held[0, :, 1], action[0, :, 1])


@pytest.mark.slow
@pytest.mark.parametrize("head", [FlowHead, RegressionHead])
@pytest.mark.parametrize("grippers", [0, 1, 2])
@pytest.mark.parametrize("kind", ["binary", "regress"])
def test_heads_learn_and_sample_any_number_of_grippers(
    head: type[FlowHead] | type[RegressionHead], grippers: int, kind: str
) -> None:
    config = FlowConfig(gripper=kind, draws=2, steps=2) if head is FlowHead else RegressionConfig(gripper=kind)
    made = head(config, SIZES, hidden_dim=8, action_dim=5, grippers=grippers, chunk=3, rngs=nnx.Rngs(0))
    tokens = jax.random.normal(jax.random.key(0), (2, 3, 8))
    action = jnp.concatenate([jnp.zeros((2, 3, 5 - grippers)), jnp.ones((2, 3, grippers))], axis=-1)
    mask = jnp.ones((2, 3), bool)
    loss, metrics = made.loss(tokens, action, mask, jax.random.key(1))
    chunk = made.sample(tokens, jax.random.key(2))
    assert chunk.shape == (2, 3, 5) and np.isfinite(loss)
    assert ("action/gripper" in metrics) == (grippers > 0)
    classified = grippers if kind == "binary" else 0
    assert made.regressed_dim == 5 - classified
    if classified:
        assert set(np.unique(chunk[..., 5 - classified :])) <= {-1.0, 1.0}
        expected = metrics["action/arm"] + config.gripper_weight * metrics["action/gripper"]
        assert loss == pytest.approx(float(expected), rel=1e-5)


def test_each_gripper_has_its_own_logit() -> None:
    made = RegressionHead(RegressionConfig(), SIZES, hidden_dim=8, action_dim=4, grippers=2, chunk=1, rngs=nnx.Rngs(0))
    assert made.gripper is not None
    made.gripper.mlp.down.kernel[...] = jnp.zeros_like(made.gripper.mlp.down.kernel[...])
    made.gripper.mlp.down.bias[...] = jnp.array([3.0, -3.0])
    tokens = jnp.ones((1, 1, 8))
    np.testing.assert_array_equal(made.gripper.sample(tokens), [[[1.0, -1.0]]])
    right, wrong = jnp.array([[[1.0, -1.0]]]), jnp.array([[[-1.0, 1.0]]])
    mask = jnp.ones((1, 1), bool)
    assert made.gripper.loss(tokens, right, mask).metrics["action/gripper_accuracy"] == 1.0
    assert made.gripper.loss(tokens, wrong, mask).metrics["action/gripper_accuracy"] == 0.0
    mixed = made.gripper.loss(tokens, jnp.array([[[1.0, 1.0]]]), mask)
    assert mixed.loss == pytest.approx((np.log1p(np.exp(-3.0)) + np.log1p(np.exp(3.0))) / 2, rel=1e-5)
