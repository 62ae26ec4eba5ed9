"""The Prophet alone, without VLM, injection and head; ``train.objective`` ``world`` trains it.

Its parameters have the names that they have in a policy, so that a policy can start from them.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float32

from wmjax.core.errors import UserError
from wmjax.models.inputs import ModelInput
from wmjax.models.vla import VLA, VLAConfig, make_world
from wmjax.models.world.conditioning import Context

Objective = Literal["policy", "world"]


class WorldModel(nnx.Module):
    """The Prophet of a policy. It reads latents, and state or actions if it is conditioned on them, but no images."""

    def __init__(self, config: VLAConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.world = make_world(config, dataclasses.replace(config.memory, inject=False), rngs)

    def recall(
        self,
        inputs: ModelInput,
        action: Float32[Array, "batch chunk action"] | None = None,
        action_mask: Bool[Array, "batch chunk"] | None = None,
    ) -> Float32[Array, "batch future tokens dim"]:
        """The prediction; a forward model predicts from the normalised actions.

        Raises:
            UserError: latents missing or of another shape, or an input that the Prophet is conditioned on is missing.

        """
        state = inputs.state if self.config.use_state else jnp.zeros_like(inputs.state)
        context = Context(state, actions=action, action_mask=action_mask)
        return self.world.recall(inputs.latents, len(inputs.state), context)

    def loss(
        self,
        inputs: ModelInput,
        action: Float32[Array, "batch chunk action"],
        action_mask: Bool[Array, "batch chunk"],
        key: jax.Array,
        train: bool = True,
    ) -> tuple[Float32[Array, ""], dict[str, Float32[Array, ""]]]:
        """The world loss, unweighted, and scalars for the log. Nothing in it is random.

        Raises:
            UserError: latents are missing or misshapen.

        """
        del key, train
        if inputs.future is None or inputs.future_mask is None:
            raise UserError("future latents are missing; train.objective 'world' needs them, give a latent store")
        prediction = self.recall(inputs, action, action_mask)
        loss, metrics = self.world.loss(prediction, inputs.latents, inputs.future, inputs.future_mask)
        return loss, {"loss": loss} | metrics


def network(config: VLAConfig, objective: Objective, rngs: nnx.Rngs) -> Any:
    """The network that an objective trains: a :class:`wmjax.models.vla.VLA`, or a :class:`WorldModel`."""
    return WorldModel(config, rngs=rngs) if objective == "world" else VLA(config, rngs=rngs)


def require_world_objective(config: VLAConfig) -> None:
    """Refuses settings whose Prophet cannot be trained without the VLM.

    Raises:
        UserError: names the setting that does not fit.

    """
    memory = config.memory
    if memory.input != "latents" or not memory.world_loss:
        raise UserError(
            f"train.objective is 'world' with model.memory.input {memory.input!r} and model.memory.world_loss "
            f"{memory.world_loss:g}; only a Prophet that reads latents and is trained by the world loss can be trained "
            "alone, use a recipe of e2 (its runs start e1 and e2stop too) or e1past"
        )
    if "instruction" in config.prophet.condition:
        raise UserError(
            "train.objective is 'world' and model.prophet.condition names 'instruction', whose words the VLM embeds; "
            "leave it out"
        )
