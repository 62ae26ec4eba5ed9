"""The optimizer's exceptions: gates have a rate of their own, and what does not decay."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tests.tiny import tiny_config
from wmjax.core.errors import UserError
from wmjax.models.nn.stack import stack_layers
from wmjax.models.vla import VLA
from wmjax.models.world.injection import GatedCrossAttention, InjectionConfig
from wmjax.trainer.optimizer import OptimizerConfig, clip_gradients, learning_rate, make_optimizer

CONFIG = OptimizerConfig(
    learning_rate=1e-2,
    warmup_steps=1,
    weight_decay=0.1,
    clip_norm=1e6,
    gate_multiplier=7.0,
    prophet_multiplier=5.0,
    linear_multiplier=0.5,
)


def injection(rngs: nnx.Rngs) -> GatedCrossAttention:
    config = InjectionConfig(width=8, heads=2)
    return GatedCrossAttention(config, hidden_dim=6, latent_dim=4, frames=2, tokens=3, rngs=rngs)


@functools.partial(jax.jit, static_argnames="config")
def updates(params: nnx.State, gradient: float, config: OptimizerConfig = CONFIG) -> nnx.State:
    """The second update (the first has rate 0, for the warm-up) under a constant gradient."""
    optimizer = make_optimizer(config, 100)
    gradients = jax.tree.map(lambda x: jnp.full_like(x, gradient), params)
    _, state = optimizer.update(gradients, optimizer.init(params), params)
    return optimizer.update(gradients, state, params)[0]


@pytest.mark.parametrize("stacked", [0, 2])
def test_gates_have_their_own_rate_and_no_weight_decay(stacked: int) -> None:
    module = stack_layers(injection, stacked, nnx.Rngs(0)) if stacked else injection(nnx.Rngs(0))
    for bias in (module.gate, module.attention.query.bias, module.hidden_norm.scale):
        bias[...] = jnp.full(bias.shape, 0.5)
    rate, kernel = float(learning_rate(CONFIG, 100)(1)), np.asarray(module.attention.query.kernel[...])
    assert rate == pytest.approx(1e-2)
    params = nnx.state(module, nnx.Param)
    idle, pushed = (nnx.as_pure(updates(params, gradient)) for gradient in (0.0, 1.0))
    for name, update in (("gate", idle["gate"]), ("bias", idle["attention"]["query"]["bias"]),
                         ("norm", idle["hidden_norm"]["scale"])):  # fmt: skip
        np.testing.assert_array_equal(update, 0.0, err_msg=name)
    np.testing.assert_allclose(idle["attention"]["query"]["kernel"], -rate * 0.1 * kernel, rtol=1e-5)
    # Adam's step under a constant gradient is its sign.
    np.testing.assert_allclose(pushed["attention"]["query"]["bias"], -rate, rtol=1e-4)
    np.testing.assert_allclose(pushed["gate"], -7.0 * rate, rtol=1e-4)


def test_the_prophet_has_its_own_rate() -> None:
    bias = lambda: {"bias": jnp.zeros(3)}  # noqa: E731
    prophet = {"layers": {"0": bias()}, "linear": bias()}
    params = {"world": {"prophet": prophet, "injection": bias()}, "head": bias()}
    pushed, rate = updates(params, 1.0), float(learning_rate(CONFIG, 100)(1))
    np.testing.assert_allclose(pushed["world"]["prophet"]["layers"]["0"]["bias"], -5.0 * rate, rtol=1e-4)
    np.testing.assert_allclose(pushed["world"]["prophet"]["linear"]["bias"], -2.5 * rate, rtol=1e-4)
    for other in (pushed["world"]["injection"], pushed["head"]):
        np.testing.assert_allclose(other["bias"], -rate, rtol=1e-4)


@pytest.mark.parametrize("stacked", [0, 2])
def test_parameters_have_rates_and_decays_by_name(stacked: int) -> None:
    module = stack_layers(injection, stacked, nnx.Rngs(0)) if stacked else injection(nnx.Rngs(0))
    module.attention.query.bias[...] = jnp.full(module.attention.query.bias.shape, 0.5)
    rules = {"rates": ("attention=3", "attention/query/kernel=0", "*_norm=0.5"), "decays": ("attention/*/bias=0.2",)}
    config, plain = dataclasses.replace(CONFIG, **rules), CONFIG
    params = nnx.state(module, nnx.Param)
    idle, pushed, usual = (
        nnx.as_pure(updates(params, gradient, c)) for gradient, c in ((0.0, config), (1.0, config), (1.0, plain))
    )
    rate = float(learning_rate(CONFIG, 100)(1))
    np.testing.assert_array_equal(pushed["attention"]["query"]["kernel"], 0.0)
    np.testing.assert_allclose(pushed["hidden_norm"]["scale"], 0.5 * usual["hidden_norm"]["scale"], rtol=1e-6)
    np.testing.assert_allclose(pushed["attention"]["out"]["kernel"], 3 * usual["attention"]["out"]["kernel"], rtol=1e-6)
    np.testing.assert_allclose(idle["attention"]["query"]["bias"], -3 * rate * 0.2 * 0.5, rtol=1e-5)
    np.testing.assert_array_equal(pushed["gate"], usual["gate"])


def test_a_frozen_parameters_gradient_is_in_no_norm_and_may_be_nan() -> None:
    params = {"head": jnp.ones(4), "backbone": {"vision": jnp.ones(4)}}
    config = OptimizerConfig(learning_rate=0.1, warmup_steps=0, clip_norm=1e-3, rates=("backbone/vision=0",))
    optimizer = make_optimizer(config, 100)
    state = optimizer.init(params)
    gradients = {"head": jnp.full(4, 0.1), "backbone": {"vision": jnp.full(4, jnp.nan)}}
    changed, state = optimizer.update(gradients, state, params)
    np.testing.assert_array_equal(changed["backbone"]["vision"], 0.0)
    moments = optax.tree.get(state, "mu")
    np.testing.assert_allclose(optax.tree.norm(moments), 0.1 * 1e-3, rtol=1e-5)


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({"rates": ("haed=2",)}, r"unknown parameters in optimizer\.rates: 'haed'; did you mean head\?"),
        ({"decays": ("backbone/visoin=0",)}, r"optimizer\.decays: 'backbone/visoin'; did you mean backbone/vision"),
    ],
)
def test_a_pattern_that_fits_nothing_is_refused_with_the_nearest(rules: dict, words: str) -> None:
    optimizer = make_optimizer(OptimizerConfig(**rules), 100)
    with pytest.raises(UserError, match=words):
        optimizer.init({"head": jnp.ones(2), "backbone": {"vision": jnp.ones(2)}})


@pytest.mark.parametrize("entry", ["head", "=1", "head=-1", "head=nan", "head=x", "head=1e9"])
def test_an_entry_of_another_form_is_refused(entry: str) -> None:
    with pytest.raises(
        UserError, match=r"optimizer\.rates has '.*'; write PATTERN=NUMBER with a number from 0 to 1000"
    ):
        OptimizerConfig(rates=(entry,))


@pytest.mark.parametrize("variant", ["e0", "e2"])
def test_the_prophets_gradient_is_clipped_for_itself(variant: str) -> None:
    """However large the world loss, the policy's step is the one it would be without."""
    params = nnx.state(VLA(tiny_config(variant), rngs=nnx.Rngs(0)), nnx.Param)
    clip = clip_gradients(0.5)

    def clipped(world: float) -> tuple[list, list]:
        scale = lambda path, x: jnp.full_like(x, world if "prophet" in jax.tree_util.keystr(path) else 2.0)  # noqa: E731
        updates, _ = clip.update(jax.tree_util.tree_map_with_path(scale, params), clip.init(params))
        leaves = jax.tree_util.tree_leaves_with_path(updates)
        split: tuple[list, list] = ([], [])
        for path, leaf in leaves:
            split["prophet" in jax.tree_util.keystr(path)].append(leaf)
        return split

    (policy, prophet), (same, larger) = clipped(1.0), clipped(1e3)
    assert len(policy) > 10 and bool(prophet) == (variant == "e2")
    jax.tree.map(np.testing.assert_array_equal, policy, same)
    for group in (policy, prophet, larger):
        assert not group or float(optax.tree.norm(group)) == pytest.approx(0.5, rel=1e-5)
