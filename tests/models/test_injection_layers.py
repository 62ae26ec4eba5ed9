"""Injection between decoder layers: closed means absent, open means there and only there, and it trains."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models.vla_helpers import CHUNK, make_actions, make_inputs, make_vla, tiny_config, wake
from wmjax.core.errors import UserError
from wmjax.models.heads.regression import RegressionConfig
from wmjax.models.world.injection import Gate, InjectionConfig

INPUTS, (ACTION, MASK), KEY = make_inputs(), make_actions(), jax.random.key(5)
OTHER = INPUTS._replace(latents=INPUTS.latents + 1.0)


def build(*layers: int, gate: float = 0.0, **backbone: Any) -> Any:
    """The real VLM (two layers), with everything but the gates open."""
    config = dataclasses.replace(tiny_config().backbone, **backbone)
    return wake(make_vla(layers=layers, gate=gate, backbone=config, head=RegressionConfig()))


@functools.partial(jax.jit, static_argnames="corruption")
def sample(model: Any, inputs: Any, corruption: str = "none") -> Any:
    return model.sample(inputs, jax.random.key(2), corruption=corruption)


def test_with_the_gates_at_zero_actions_do_not_depend_on_the_memory_bit_for_bit() -> None:
    closed, opened = build(0, 1), build(0, 1, gate=1.0)
    assert closed.world.injection.gate.shape == (2, 1)
    plain, info = sample(closed, INPUTS)
    np.testing.assert_array_equal(plain, sample(closed, OTHER)[0])
    assert (info["memory/ratio"] == 0.0).all() and (info["memory/gate"] == 0.0).all()
    found, info = sample(opened, INPUTS)
    assert jnp.abs(found - sample(opened, OTHER)[0]).max() > 1e-3
    assert (info["memory/ratio"] > 0.0).all()
    np.testing.assert_allclose(info["memory/gate"], np.tanh(1.0), rtol=1e-6)
    # Another graph, hence another rounding.
    np.testing.assert_allclose(sample(opened, INPUTS, "closed")[0], plain, atol=1e-5)


def test_the_memory_enters_after_the_named_layer_at_the_action_tokens() -> None:
    """After the last layer: its output, what the cross-attention makes of it, and then the final norm."""
    model = build(1, gate=1.0)

    @jax.jit
    def by_hand(model: Any) -> jax.Array:
        _, layers = model.backbone.run(*model.encode_prompt(INPUTS), None, collect=True)
        graph, state = nnx.split(model.world.injection)
        injection = nnx.merge(graph, jax.tree.map(lambda x: x[0], nnx.as_pure(state)))
        return model.backbone.norm(injection(layers[-1][:, -CHUNK:], model.recall(INPUTS)).tokens)

    tokens = jax.jit(lambda m: m.action_tokens(INPUTS).tokens)
    np.testing.assert_allclose(tokens(model), by_hand(model), atol=1e-5)
    assert jnp.abs(tokens(build(0, gate=1.0)) - tokens(model)).max() > 1e-2


@pytest.mark.long
def test_all_of_it_has_a_gradient_whatever_is_unrolled_or_recomputed() -> None:
    """Every parameter with open gates; at zero, as they start, the gates themselves, each its own."""

    @jax.jit
    def gradient(model: Any) -> Any:
        graph, params = nnx.split(model)
        return nnx.as_pure(jax.grad(lambda p: nnx.merge(graph, p).loss(INPUTS, ACTION, MASK, KEY)[0])(params))

    expected, found = gradient(build(0, 1, gate=1.0)), gradient(build(0, 1, gate=1.0, scan_unroll=2, remat="full"))
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=2e-5), found, expected)
    leaves = jax.tree_util.tree_leaves_with_path(expected)
    assert not [jax.tree_util.keystr(path) for path, leaf in leaves if not bool(jnp.any(leaf != 0.0))]
    started = build(0, 1)
    assert isinstance(started.world.injection.gate, Gate)
    gates = np.abs(gradient(started)["world"]["injection"]["gate"])
    assert gates.min() > 1e-6 and gates[0, 0] != gates[1, 0]


def test_layers_that_are_not_there_are_named() -> None:
    with pytest.raises(UserError, match=r"injection.layers contains 2; the backbone has 2 layers, from 0 on"):
        build(0, 2)
    with pytest.raises(UserError, match=r"injection.layers is \[1, 0\]; name each layer once, in ascending order"):
        InjectionConfig(layers=(1, 0))
