"""The shapes of a training step's inputs, without data."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from wmjax.core.specs import ActionSpec, EncoderSpec
from wmjax.data.observation import Prompt
from wmjax.data.packing import SCALE, VALUES, layout
from wmjax.encoders.base import ENCODERS
from wmjax.experiment.config import Experiment
from wmjax.models import prompts
from wmjax.models.backbones.frozen_vision import feature_shape
from wmjax.models.inputs import ModelInput
from wmjax.sim.libero import ACTION_SPEC

CONVERTED_SIZE = 224
"""Pixels of the published demonstrations as train/data/libero.toml converts them."""
CONVERTED_TASKS = 40
"""Tasks of the published demonstrations."""


def image_size(experiment: Experiment) -> int:
    """The image size of an experiment's store in pixels."""
    return CONVERTED_SIZE if experiment.data.places else experiment.data.observation.image_size


def tasks(experiment: Experiment) -> int:
    """The number of prompts."""
    return CONVERTED_TASKS if experiment.data.places else len(experiment.data.tasks)


def batch_shapes(experiment: Experiment, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of the batch that the loader delivers."""
    model, size = experiment.model, image_size(experiment)
    shape, tokens = model.prophet, latent_tokens(experiment)
    cameras = len(experiment.data.observation.cameras)
    columns: dict[str, tuple[tuple[int, ...], Any]] = {
        "images": ((cameras, size, size, 3), jnp.uint8),
        "state": ((model.state_dim,), jnp.float32),
        "action": ((model.chunk, model.action_dim), jnp.float32),
        "action_mask": ((model.chunk,), jnp.bool_),
        "task": ((), jnp.int32),
        "shift": ((2,), jnp.int32),
        "sample_id": ((), jnp.int32),
        "sample_mask": ((), jnp.bool_),
    }
    if model.memory.reads_latents:
        columns["latents"] = ((shape.history, tokens, shape.latent_dim), jnp.float16)
        columns["future"] = ((shape.future, tokens, shape.latent_dim), jnp.float16)
        columns["future_mask"] = ((shape.future,), jnp.bool_)
    if experiment.train.objective == "world" or experiment.train.cached_vision != "none":
        del columns["images"]
    columns |= feature_columns(experiment)
    if model.pending:
        columns["pending"] = ((model.pending, model.action_dim), jnp.float32)
    return {name: jax.ShapeDtypeStruct((batch, *rest), dtype) for name, (rest, dtype) in columns.items()}


def decision_shapes(experiment: Experiment, rows: int) -> ModelInput:
    """The shapes of what a policy decides by, for so many robots."""
    seeing = dataclasses.replace(experiment.train, objective="policy", cached_vision="none")
    batch = batch_shapes(dataclasses.replace(experiment, train=seeing), rows)
    given: dict[str, Any] = {name: batch[name] for name in ("images", "state", "pending") if name in batch}
    if experiment.model.memory.reads_latents:
        given["latents"] = jax.ShapeDtypeStruct(batch["latents"].shape, jnp.float32)  # normalised
    return ModelInput(prompt=prompt_shapes(experiment, rows), **given)


def feature_columns(experiment: Experiment) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Shape and type of a frame's stored features, by the batch's columns; none where the vision tower runs."""
    packing, model = experiment.train.cached_vision, experiment.model
    if packing == "none":
        return {}
    cameras = len(experiment.data.observation.cameras[: model.cameras])
    tokens, channels = feature_shape(model.backbone, image_size(experiment))
    packed = layout((cameras * tokens, channels), packing)
    names = {VALUES: "features", SCALE: "feature_scale"}
    return {names[name]: (shape, jnp.dtype(kind)) for name, (kind, shape) in packed.items()}


def feature_bytes(experiment: Experiment) -> int:
    """Bytes of the stored features of one frame in one view; 0 where the vision tower runs."""
    return sum(math.prod(shape) * jnp.dtype(kind).itemsize for shape, kind in feature_columns(experiment).values())


def latent_tokens(experiment: Experiment) -> int:
    """Latent tokens of a frame, those of all of the encoder's cameras; the Prophet may pool them."""
    encoder = experiment.encoder.with_default_camera(experiment.data.observation.cameras)
    found, _ = ENCODERS.resolve(encoder.kind).shape(encoder)
    return int(found or experiment.model.prophet.tokens)


def prompt_shapes(experiment: Experiment, batch: int) -> Prompt:
    """The prompts of so many instructions, as the experiment's backbone makes them."""
    spec = dataclasses.replace(experiment.data.observation, image_size=image_size(experiment))
    one = prompts.prompt_shapes(experiment.prompt, experiment.model, spec)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((batch, *leaf.shape[1:]), leaf.dtype), one)


def plain_specs(experiment: Experiment) -> tuple[ActionSpec, EncoderSpec | None]:
    """LIBERO's actions and the experiment's latents, with statistics that change nothing."""
    model, dim = experiment.model, experiment.model.prophet.latent_dim
    action = dataclasses.replace(
        ACTION_SPEC, chunk=model.chunk, state_offset=(0.0,) * model.state_dim, state_scale=(1.0,) * model.state_dim
    )
    if not model.memory.reads_latents:
        return action, None
    cameras = experiment.encoder.with_default_camera(experiment.data.observation.cameras).cameras
    tokens, (zeros, ones) = latent_tokens(experiment), ((value,) * dim for value in (0.0, 1.0))
    return action, EncoderSpec(dim=dim, tokens_per_frame=tokens, cameras=cameras, mean=zeros, std=ones)
