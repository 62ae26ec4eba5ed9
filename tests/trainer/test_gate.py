"""The memory's gate in a bfloat16 policy, moved by the real training step and optimizer."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.data.synthetic import make_latents, make_store
from tests.tiny import LATENT_DIM, tiny_config
from wmjax.data.loader import make_loader
from wmjax.data.statistics import denormalise_action
from wmjax.models.nn.lora import LoRAConfig
from wmjax.models.parameters import split_model, trainable_filter
from wmjax.models.prompts import PromptConfig
from wmjax.models.vla import VLA, VLAConfig
from wmjax.trainer.config import Inputs, TrainConfig
from wmjax.trainer.inputs import make_inputs
from wmjax.trainer.optimizer import OptimizerConfig, make_optimizer
from wmjax.trainer.step import initial_state, make_train_step, model_input

EDGE = 2.0**-6
LOST = 2.0**-15
"""A bfloat16 gate just below ``EDGE`` loses updates smaller than this: half the distance to its neighbours."""
RATE = 2e-6
"""The learning rate; the gate's is ten times as large."""


def policy(layers: tuple[int, ...]) -> VLAConfig:
    """As scale 3b: a frozen bfloat16 backbone with adapters, all computed in bfloat16."""
    config = tiny_config("e2", "regression", dtype="bfloat16", param_dtype="bfloat16", lora=LoRAConfig(rank=2))
    return dataclasses.replace(
        config,
        dtype="bfloat16",
        # No sample without its memory and no binary gripper: every step's gradient opens the gate.
        memory=dataclasses.replace(config.memory, dropout=0.0),
        head=dataclasses.replace(config.head, gripper="regress"),
        injection=dataclasses.replace(config.injection, layers=layers),
    )


def set_gates(params: nnx.State, value: float) -> None:
    gate = params["world"]["injection"]["gate"]
    gate[...] = jnp.full_like(gate[...], value)


def wide_open(graph: Any, params: nnx.State, frozen: nnx.State, batch: dict, inputs: Inputs) -> np.ndarray:
    """The actions of the same policy with its gates at 1: to learn them is to open the gates."""
    set_gates(params, 1.0)

    @jax.jit
    def act(params: nnx.State) -> jax.Array:
        seen = model_input(batch, inputs.prompts, inputs.action_spec, inputs.encoder_spec)
        return nnx.merge(graph, params, frozen).sample(seen, jax.random.key(0))[0]

    return denormalise_action(np.asarray(act(params)), inputs.action_spec, np.asarray(batch["state"]))


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("layers", [(), (0, 1)])
def test_it_moves_through_two_to_the_minus_six_in_steps_that_bfloat16_would_lose(
    layers: tuple[int, ...], tmp_path: Path
) -> None:
    """The predecessor's gate was bfloat16 and stopped exactly there."""
    model, store = policy(layers), make_store(tmp_path / "store")
    latents = make_latents(tmp_path / "latents", store, dim=LATENT_DIM)
    inputs = make_inputs(store, latents, PromptConfig(length=56), model, TrainConfig(validation_fraction=0.2))
    loader = dataclasses.replace(inputs.loader, batch_size=4, views=1)  # the view that is not shifted
    batch = next(iter(make_loader(store, latents, inputs.train_episodes, loader)))

    built = jax.jit(lambda: nnx.split(VLA(model, rngs=nnx.Rngs(0))))()
    graph, params, frozen = split_model(nnx.merge(*built), trainable_filter("adapters"))
    batch["action"] = wide_open(graph, params, frozen, batch, inputs)
    set_gates(params, EDGE - 10 * 10 * RATE)

    optimizer = make_optimizer(OptimizerConfig(learning_rate=RATE, warmup_steps=1), 1000)
    specs, plain = (inputs.action_spec, inputs.encoder_spec), {"max_shift": 0, "state_noise": 0.0}
    step = jax.jit(make_train_step(graph, optimizer, *specs, seed=0, ema_decay=0.9, **plain))
    state, gates, ratios = initial_state(params, optimizer), [], []
    for _ in range(25):
        gates.append(np.asarray(state.params["world"]["injection"]["gate"][...]))
        state, metrics = step(state, frozen, batch, inputs.prompts)
        ratios.append(float(metrics["memory/ratio"]))
    kept = {leaf.dtype for leaf in jax.tree.leaves(state) if leaf.dtype != jnp.int32}
    assert kept == {np.dtype("float32")}  # parameters, their average and the optimizer's moments

    moves = np.diff(gates, axis=0)[1:]  # the first step of the warm-up has rate 0
    assert (gates[0] < EDGE).all() and (gates[-1] > EDGE).all()
    assert (moves > 5 * RATE).all() and (moves < LOST).all()
    # What is added to the action tokens follows every one of them.
    assert (np.diff(ratios[1:]) > 0.0).all()
    # The same moves of a bfloat16 gate, one after the other, would have left it where it was.
    stuck = jnp.asarray(gates[0], jnp.bfloat16)
    for move in moves:
        np.testing.assert_array_equal(stuck + jnp.asarray(move, jnp.bfloat16), stuck)
