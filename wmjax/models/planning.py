"""Ranking of action chunks by a forward model: the distance of the predicted latents from a goal's."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32

from wmjax.core.errors import UserError
from wmjax.models.inputs import ModelInput
from wmjax.models.vla import VLA


class Ranking(NamedTuple):
    """Candidates ranked by their predicted outcome: their order, best first, and their mean squared distances."""

    order: Int32[Array, "batch candidates"]
    distance: Float32[Array, "batch candidates"]


def rank_chunks(
    model: VLA,
    inputs: ModelInput,
    chunks: Float32[Array, "batch candidates chunk action"],
    goal: Float32[Array, "batch tokens dim"],
    *,
    frame: int = -1,
) -> Ranking:
    """Ranks candidate chunks by the distance of the predicted latents from a goal's. The VLM does not run.

    Args:
        model: a policy whose Prophet is conditioned on actions.
        inputs: where the robot is; images are not read.
        chunks: normalised actions.
        goal: normalised latents of one frame.
        frame: which predicted frame is compared, 0 for the next one, -1 for the last one.

    Raises:
        UserError: the Prophet is not conditioned on actions; chunks of another shape; a frame that is not predicted.

    """
    config = model.config
    if not model.world.is_forward_model:
        raise UserError(
            f"prophet.condition is {list(config.prophet.condition)}; ranking chunks needs 'actions' in it, train with "
            "--model.prophet.condition '[\"actions\"]' --model.memory.inject false"
        )
    if chunks.shape[2:] != (config.chunk, config.action_dim):
        raise UserError(
            f"chunks are {chunks.shape}; the model predicts from [batch, candidates, {config.chunk}, "
            f"{config.action_dim}]"
        )
    if not -config.prophet.future <= frame < config.prophet.future:
        raise UserError(f"frame is {frame}; prophet.future {config.prophet.future} frames are predicted")
    wanted = model.world.prophet_latents(goal[:, None])

    def distance(chunk: Float32[Array, "batch chunk action"]) -> Float32[Array, " batch"]:
        reached = model.world.recall(inputs.latents, chunk.shape[0], model.prophet_context(inputs, chunk))
        return jnp.mean(jnp.square(reached[:, frame] - wanted[:, 0]), axis=(1, 2))

    found = jax.vmap(distance, in_axes=1, out_axes=1)(chunks)
    return Ranking(jnp.argsort(found, axis=1), found)
