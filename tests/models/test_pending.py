"""A network that is told its pending actions: the one that is not, plus one embedding, which trains."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models.vla_helpers import (
    BATCH,
    TinyBackbone,
    head_config,
    make_actions,
    make_inputs,
    make_vla,
    tiny_config,
    wake,
)
from tests.variants import VARIANTS
from wmjax.core.errors import UserError
from wmjax.diagnostics.passes import input_conditions
from wmjax.models.parameters import to_named
from wmjax.models.vla import VLA

STEPS = 3
KEY = jax.random.key(5)
PENDING = jnp.asarray(np.random.default_rng(3).normal(size=(BATCH, STEPS, 7)), jnp.float32)
INPUTS = make_inputs()
TOLD = INPUTS._replace(pending=PENDING)
ACTION, MASK = make_actions()


@functools.cache
def told(variant: str, head: str = "regression", **changes: Any) -> VLA:
    return wake(make_vla(variant, head=head_config(head), pending=STEPS, **changes))


@functools.cache
def started(pending: int) -> dict[str, jax.Array]:
    config = tiny_config("e0", head=head_config("regression"), pending=pending)
    model = jax.jit(lambda: nnx.state(VLA(config, rngs=nnx.Rngs(1), backbone=TinyBackbone(nnx.Rngs(0)))))()
    return {name: np.asarray(value) for name, value in to_named(model).items()}


@jax.jit
def sample(model: VLA, inputs: Any) -> jax.Array:
    return model.sample(inputs, KEY)[0]


def test_it_has_the_parameters_of_the_one_that_is_not_told_and_one_embedding() -> None:
    plain, other = started(0), started(STEPS)
    assert {name.split("/")[0] for name in other.keys() - plain.keys()} == {"pending_in"}
    assert not plain.keys() - other.keys()
    for name, value in plain.items():
        np.testing.assert_array_equal(other[name], value)


def test_a_network_that_is_not_told_does_not_read_them() -> None:
    model = wake(make_vla("e0", head=head_config("regression")))
    np.testing.assert_array_equal(sample(model, TOLD._replace(pending=None)), sample(model, INPUTS))
    np.testing.assert_array_equal(sample(model, TOLD), sample(model, INPUTS))


@pytest.mark.parametrize(("variant", "head"), [*((v, "regression") for v in VARIANTS), ("e2", "flow")])
def test_every_pending_action_reaches_the_chunk_of_every_variant(variant: str, head: str) -> None:
    model = told(variant, head)
    plain = sample(model, TOLD)
    for step in range(STEPS):
        changed = sample(model, TOLD._replace(pending=PENDING.at[0, step].add(1.0)))
        assert np.abs(changed[0] - plain[0]).max() > 1e-4
        np.testing.assert_array_equal(changed[1:], plain[1:])
    swapped = sample(model, TOLD._replace(pending=PENDING[:, ::-1]))
    assert np.abs(swapped - plain).max() > 1e-4  # their order counts


def test_without_a_state_they_are_told_all_the_same() -> None:
    model = told("e0", use_state=False)
    assert np.abs(sample(model, TOLD._replace(pending=-PENDING)) - sample(model, TOLD)).max() > 1e-4


@pytest.mark.parametrize("head", ["regression", "flow"])
def test_the_action_loss_reaches_the_embedding(head: str) -> None:
    graph, params, rest = nnx.split(told("e0", head), nnx.Param, ...)

    def loss(params: nnx.State) -> tuple[jax.Array, Any]:
        return nnx.merge(graph, params, rest).loss(TOLD, ACTION, MASK, KEY, train=True)

    gradients = jax.jit(jax.grad(loss, has_aux=True))(params)[0]
    named = to_named(gradients["pending_in"])
    assert len(named) == 4
    for name, gradient in named.items():
        assert np.abs(gradient).max() > 1e-6, name


def test_what_is_missing_or_of_another_number_is_refused() -> None:
    model = told("e0")
    with pytest.raises(UserError, match=r"pending actions are missing; the model expects \[batch, 3, 7\]"):
        model.hidden(INPUTS)
    with pytest.raises(UserError, match=r"pending actions are \[3, 2, 7\]; the model expects"):
        model.hidden(TOLD._replace(pending=PENDING[:, :2]))
    with pytest.raises(UserError, match=r"model\.roll_state is true with model\.use_state false"):
        dataclasses.replace(tiny_config("e0"), roll_state=True, use_state=False)


def test_a_diagnosis_exchanges_them_between_samples() -> None:
    plain, more = (input_conditions(tiny_config("e0", pending=steps), 2) for steps in (0, STEPS))
    (condition,) = [each for each in more if each.name not in {one.name for one in plain}]
    assert condition.name == "another sample's pending actions" and condition.change is not None
    batch = {"pending": np.asarray(PENDING), "state": np.zeros((BATCH, 8))}
    changed = condition.change(batch, np.random.default_rng(0))
    np.testing.assert_array_equal(changed["pending"], np.asarray(PENDING)[[2, 0, 1]])
    assert changed["state"] is batch["state"]
