"""Runs as training leaves them, with small untrained networks."""

import dataclasses
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from tests.models.vla_helpers import initialised
from tests.tiny import tiny_config
from wmjax.core import specs
from wmjax.core.specs import EncoderSpec, ObservationSpec
from wmjax.encoders.vjepa2 import encoder_spec
from wmjax.experiment.config import Experiment, load, to_dict
from wmjax.models.parameters import split_model, to_named, trainable_filter
from wmjax.models.vla import VLA
from wmjax.models.world.prophet import ProphetConfig
from wmjax.sim.libero import ACTION_SPEC, OBSERVATION_SPEC
from wmjax.trainer import checkpoint


def tiny_experiment(variant: str, head: str, *, pending: int = 0, **backbone: Any) -> Experiment:
    """A recipe with a network of :func:`tests.tiny.tiny_config`, on the latents of the mini encoder.

    ``pending`` is the delay that it is trained for, and the number of pending actions that it is told.
    """
    prophet = ProphetConfig(width=24, heads=2, layers=1)
    model = dataclasses.replace(tiny_config(variant, head, **backbone), prophet=prophet, pending=pending)
    kind = {"flow": "flow", "regression": "mse"}[head]
    recipe = load(f"{variant}_{kind}")
    return dataclasses.replace(recipe, model=model, train=dataclasses.replace(recipe.train, delay=pending))


def parameters(experiment: Experiment) -> dict[str, Any]:
    """Random parameters of all of it, also of what starts at zero, as the output of a flow head does."""
    model = initialised(lambda rngs: VLA(experiment.model, rngs=rngs))
    if model.world.injection is not None:
        model.world.injection.gate[...] = jnp.ones((1,))
    random = np.random.default_rng(1)
    named = to_named(split_model(model, trainable_filter("all"))[1])
    fill = {name: random.normal(0, 0.2, value.shape) for name, value in named.items() if not np.any(value)}
    return {name: jnp.asarray(fill[name], value.dtype) if name in fill else value for name, value in named.items()}


def plain_encoder_spec() -> EncoderSpec:
    """The mini encoder, with statistics that change nothing."""
    spec = encoder_spec("mini", ("agentview",))
    return dataclasses.replace(spec, mean=(0.0,) * spec.dim, std=(1.0,) * spec.dim)


def plain_specs(observation: ObservationSpec) -> dict[str, Any]:
    """The specs of a checkpoint as it holds them, with the mini encoder and statistics that change nothing."""
    found = {
        "observation": observation,
        "encoder": plain_encoder_spec(),
        "action": dataclasses.replace(ACTION_SPEC, chunk=8),
    }
    return {name: specs.to_dict(spec) for name, spec in found.items()}


def save_run(folder: Path, variant: str, head: str, *, pending: int = 0, **backbone: Any) -> Path:
    """Writes a run's checkpoint and returns the run's folder; ``backbone`` are settings of the backbone."""
    experiment = tiny_experiment(variant, head, pending=pending, **backbone)
    experiment = dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, trainable="all"))
    found = plain_specs(OBSERVATION_SPEC) | ({"encoder": None} if variant == "e0" else {})
    meta = {"experiment": to_dict(experiment), "specs": found, "backbone_hash": None}
    checkpoint.save(folder / "checkpoints", 1, {"ema": parameters(experiment)}, meta)
    return folder
