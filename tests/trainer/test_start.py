"""Training from another run's checkpoint: what is taken over, what is listed as new, and what is refused."""

import dataclasses
import logging
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from tests.data.synthetic import make_latents, make_store
from tests.tiny import LATENT_DIM, tiny_config
from tests.trainer.test_loop import CONFIG, OPTIMIZER
from wmjax.core.errors import UserError
from wmjax.core.rng import named_key
from wmjax.experiment.config import load, to_dict
from wmjax.models.parameters import split_model, to_named, trainable_filter
from wmjax.models.prompts import PromptConfig
from wmjax.models.vla import VLA, VLAConfig
from wmjax.pipeline.start import starting_point
from wmjax.trainer.config import Inputs
from wmjax.trainer.inputs import make_inputs
from wmjax.trainer.loop import train
from wmjax.trainer.sharding import MeshConfig


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    store = make_store(tmp_path_factory.mktemp("store"))
    latents = make_latents(tmp_path_factory.mktemp("latents"), store, dim=LATENT_DIM)
    return make_inputs(store, latents, PromptConfig(length=56), tiny_config(), CONFIG)


@pytest.fixture(scope="module")
def run(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps."""
    folder, model = tmp_path_factory.mktemp("run"), tiny_config()
    experiment = dataclasses.replace(load("e2_flow", "smoke"), model=model)
    config = dataclasses.replace(CONFIG, steps=3)
    meta = {"experiment": to_dict(experiment)}
    train(lambda rngs: VLA(model, rngs=rngs), inputs, folder, config, OPTIMIZER, MeshConfig(), max_shift=3, meta=meta)
    return folder


def fresh(model: VLAConfig, seed: int) -> tuple[nnx.State, nnx.State]:
    built = VLA(model, rngs=nnx.Rngs(named_key(seed, "parameters")))
    return split_model(built, trainable_filter("all"))[1:]


def test_parameters_are_those_of_the_checkpoint(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    start = starting_point(str(run))
    assert start is not None and start.folder == run / "checkpoints" / "00000003"
    with caplog.at_level(logging.INFO, "wmjax.train"):
        found, _ = start.load(*fresh(tiny_config(), seed=5))
        again, _ = start.load(*fresh(tiny_config(), seed=6))
    assert jax.tree.all(jax.tree.map(np.array_equal, found, again))
    assert not jax.tree.all(jax.tree.map(np.array_equal, found, fresh(tiny_config(), seed=5)[0]))
    assert not any(" new: " in line or " left out: " in line for line in caplog.messages)


def test_what_fits_only_in_part_is_listed(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    start = starting_point(str(run))
    assert start is not None
    params, frozen = fresh(tiny_config(head="regression"), seed=5)
    with caplog.at_level(logging.INFO, "wmjax.train"):
        found, _ = start.load(params, frozen)
    before, after = to_named(params), to_named(found)
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert any(name.startswith("backbone") for name in moved)
    assert not any(name.startswith("head/mlp") for name in moved)
    assert any(" new: head/" in line for line in caplog.messages)
    assert any(" left out: head/" in line for line in caplog.messages)


def test_the_checkpoints_units_are_kept(run: Path, inputs: Inputs) -> None:
    start = starting_point(str(run))
    assert start is not None
    others = dataclasses.replace(inputs.action_spec, offset=(0.5,) * 7)
    assert start.fit_inputs(dataclasses.replace(inputs, action_spec=others)).action_spec == inputs.action_spec
    assert inputs.encoder_spec is not None
    stored = dataclasses.replace(inputs.encoder_spec, mean=(0.5,) * LATENT_DIM)
    assert start.fit_inputs(dataclasses.replace(inputs, encoder_spec=stored)).encoder_spec == inputs.encoder_spec
    another = dataclasses.replace(stored, weights_hash="another")
    assert start.fit_inputs(dataclasses.replace(inputs, encoder_spec=another)).encoder_spec == another
    longer = dataclasses.replace(inputs, action_spec=dataclasses.replace(inputs.action_spec, chunk=16))
    with pytest.raises(UserError, match=r"model\.chunk is 16, the policy of train\.init_from .* has 8; use that"):
        start.fit_inputs(longer)


def test_nothing_to_start_from_is_refused(tmp_path: Path) -> None:
    assert starting_point("") is None
    with pytest.raises(UserError, match=r"train\.init_from: run .*missing' is not a folder"):
        starting_point(str(tmp_path / "missing"))
    with pytest.raises(UserError, match=r"train\.init_from: checkpoints .* none is complete"):
        starting_point(str(tmp_path))
