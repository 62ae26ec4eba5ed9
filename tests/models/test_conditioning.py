"""What a Prophet is told beside latents: that it listens, what stays as it was, and a forward model that chooses."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models.vla_helpers import (
    CHUNK,
    DIM,
    FUTURE,
    TOKENS,
    fit,
    make_actions,
    make_inputs,
    make_vla,
    wake,
)
from tests.variants import VARIANTS
from wmjax.core.errors import UserError
from wmjax.core.settings import build
from wmjax.models.heads.regression import RegressionConfig
from wmjax.models.planning import rank_chunks
from wmjax.models.world.config import WorldMemoryConfig
from wmjax.models.world.prophet import ProphetConfig

INPUTS, (ACTION, MASK), KEY = make_inputs(), make_actions(), jax.random.key(5)
FORWARD = WorldMemoryConfig(input="latents", world_loss=1.0, inject=False)


def conditioned(*condition: str, memory: WorldMemoryConfig = VARIANTS["e2"], gate: float | None = None) -> Any:
    prophet = ProphetConfig(
        width=16, layers=2, heads=2, history=3, future=FUTURE, tokens=TOKENS, latent_dim=DIM, condition=condition
    )
    return make_vla(prophet=prophet, memory=memory, gate=gate, head=RegressionConfig())


recall = jax.jit(lambda model, inputs: model.recall(inputs))
sample = jax.jit(lambda model, inputs: model.sample(inputs, jax.random.key(2)))


def test_state_and_instruction_change_the_prediction_only_if_it_is_told_them() -> None:
    prompt = INPUTS.prompt
    words, padding = np.array(prompt.tokens), np.array(prompt.tokens)
    words[1, 5], padding[1, 0] = (words[1, 5] + 1) % 39, (padding[1, 0] + 1) % 39
    swapped = np.array(prompt.tokens)
    swapped[1, [5, 6]] = swapped[1, [6, 5]]
    assert swapped[1, 5] != swapped[1, 6]
    other = {
        "state": INPUTS._replace(state=INPUTS.state + 1.0),
        "word": INPUTS._replace(prompt=prompt._replace(tokens=jnp.asarray(words))),
        "order": INPUTS._replace(prompt=prompt._replace(tokens=jnp.asarray(swapped))),
        "padding": INPUTS._replace(prompt=prompt._replace(tokens=jnp.asarray(padding))),
    }
    heard = {(): (), ("state",): ("state",), ("instruction",): ("word", "order")}
    for condition, listens in heard.items():
        model = wake(conditioned(*condition))
        plain = recall(model, INPUTS)
        for name, inputs in other.items():
            changed = jnp.abs(recall(model, inputs) - plain).max(axis=(1, 2, 3))
            assert (changed[1] > 1e-4) == (name in listens), (condition, name)
            if name != "state":
                np.testing.assert_array_equal(changed[jnp.array([0, 2])], 0.0)


def test_without_a_condition_there_is_nothing_more() -> None:
    def paths(*condition: str) -> set[tuple]:
        return set(nnx.to_flat_state(nnx.state(conditioned(*condition))).paths)

    added = paths("state", "instruction") - paths()
    assert len(added) == 4 and all("conditioner" in path for path in added)
    assert not paths() - paths("state", "instruction")


def test_the_instruction_does_not_let_the_world_loss_into_the_vlm() -> None:
    """That would be e2aux: the gradient of the world loss in the backbone is zero, and elsewhere it is not."""
    graph, params = nnx.split(wake(conditioned("state", "instruction", gate=1.0)))
    by_world = jax.jit(jax.grad(lambda p: nnx.merge(graph, p).loss(INPUTS, ACTION, MASK, KEY)[1]["world/loss"]))
    gradient = nnx.as_pure(by_world(params))
    assert all(bool(jnp.all(leaf == 0.0)) for leaf in jax.tree.leaves(gradient["backbone"]))
    told = jax.tree.leaves(gradient["world"]["prophet"]["conditioner"])
    assert len(told) == 4 and min(float(jnp.abs(leaf).max()) for leaf in told) > 1e-6


def test_a_forward_models_true_actions_reach_no_action() -> None:
    """The Prophet is told them in training; nothing that acts depends on the Prophet, by output and by gradient."""
    model = wake(conditioned("actions", memory=FORWARD))
    before = sample(model, INPUTS)
    model.world.prophet.out.kernel[...] *= 2.0
    after = sample(model, INPUTS)
    np.testing.assert_array_equal(after[0], before[0])
    assert jnp.abs(after[1]["prediction"] - before[1]["prediction"]).max() > 1e-3
    graph, params = nnx.split(model)

    @functools.partial(jax.jit, static_argnames="name")
    def gradient(action: jax.Array, name: str) -> Any:
        by = jax.grad(lambda p: nnx.merge(graph, p).loss(INPUTS, action, MASK, KEY)[1][name])(params)
        return nnx.as_pure(by)

    by_action, by_world = gradient(ACTION, "action/loss"), gradient(ACTION, "world/loss")
    assert all(bool(jnp.all(leaf == 0.0)) for leaf in jax.tree.leaves(by_action["world"]))
    acting = {name: leaf for name, leaf in by_world.items() if name != "world"}
    assert all(bool(jnp.all(leaf == 0.0)) for leaf in jax.tree.leaves(acting))
    assert jnp.abs(by_world["world"]["prophet"]["conditioner"]["actions"]["kernel"]).max() > 1e-6
    told, told_others = (g["world"]["prophet"]["out"]["kernel"] for g in (by_world, gradient(ACTION + 1, "world/loss")))
    assert jnp.abs(told - told_others).max() > 1e-6


def move(latent: jax.Array, actions: jax.Array) -> jax.Array:
    """A linear world: each action adds its image under a fixed map; frame k + 1 comes after half the chunk each."""
    image = jax.random.normal(jax.random.key(77), (7, DIM)) / 7**0.5
    done = jnp.stack([actions[..., : CHUNK // 2, :].sum(-2), actions.sum(-2)], -2)
    return latent[..., None, :, :] + (done @ image)[..., None, :]


@pytest.mark.long
def test_a_forward_model_finds_the_chunk_that_leads_to_the_goal() -> None:
    model = conditioned("actions", memory=FORWARD)
    graph, params, rest = nnx.split(model, lambda path, _: path[0] == "world", ...)

    def batch(key: jax.Array, size: int, candidates: int) -> tuple[Any, jax.Array]:
        latents = jax.random.normal(key, (size, 3, TOKENS, DIM))
        chunks = jax.random.normal(jax.random.fold_in(key, 1), (size, candidates, CHUNK, 7))
        return make_inputs(size)._replace(latents=latents), chunks

    def objective(params: Any, key: jax.Array) -> Any:
        inputs, chunks = batch(key, 32, 1)
        inputs = inputs._replace(
            future=move(inputs.latents[:, -1], chunks[:, 0]), future_mask=jnp.ones((32, FUTURE), bool)
        )
        out = nnx.merge(graph, params, rest)
        told = out.prophet_context(inputs, chunks[:, 0])
        prediction = out.world.recall(inputs.latents, 32, told)
        return out.world.loss(prediction, inputs.latents, inputs.future, inputs.future_mask)

    trained, metrics = fit(params, objective, 400, 5e-3)
    assert metrics["world/skill_2"][-20:].mean() > 0.8
    inputs, chunks = batch(jax.random.key(9), 64, 8)
    right = np.arange(64) % 8
    goal = move(inputs.latents[:, -1], chunks[np.arange(64), right])[:, -1]
    model = nnx.merge(graph, trained, rest)
    found = jax.jit(lambda m: rank_chunks(m, inputs, chunks, goal))(model)
    assert (np.asarray(found.order)[:, 0] == right).mean() > 0.9  # chance is 1 in 8
    np.testing.assert_array_equal(np.take_along_axis(found.distance, found.order, 1), np.sort(found.distance, axis=1))
    halfway = move(inputs.latents[:, -1], chunks[np.arange(64), right])[:, 0]
    near = jax.jit(lambda m: rank_chunks(m, inputs, chunks, halfway, frame=0))(model)
    assert (np.asarray(near.order)[:, 0] == right).mean() > 0.9


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(UserError, match=r"with memory.inject true: the memory would leak the true actions"):
        conditioned("actions")
    with pytest.raises(UserError, match=r"'actions' with memory.input 'constant'"):
        conditioned("actions", memory=WorldMemoryConfig(input="constant", world_loss=0.0, inject=False))
    with pytest.raises(UserError, match=r"prophet.condition is \['state'\] with memory.input 'copy'"):
        conditioned("state", memory=VARIANTS["e1copy"])
    with pytest.raises(UserError, match=r"choose one of 'state', 'instruction', 'actions'"):
        build(ProphetConfig, {"condition": ["instructions"]})
    chunks, goal = jnp.zeros((3, 2, CHUNK, 7)), jnp.zeros((3, TOKENS, DIM))
    with pytest.raises(UserError, match=r"prophet.condition is \['state'\]; ranking chunks needs 'actions'"):
        rank_chunks(conditioned("state"), INPUTS, chunks, goal)
    forward = conditioned("actions", memory=FORWARD)
    with pytest.raises(UserError, match=r"chunks are \(3, 2, 3, 7\)"):
        rank_chunks(forward, INPUTS, chunks[:, :, 1:], goal)
    with pytest.raises(UserError, match=r"frame is 2; prophet.future 2"):
        rank_chunks(forward, INPUTS, chunks, goal, frame=2)
