"""The sizes of state and action, and the latents' camera, follow from the demonstrations if no setting gives them."""

import dataclasses
from typing import TYPE_CHECKING, Any

from wmjax.core.errors import UserError
from wmjax.core.specs import ActionSpec, ObservationSpec
from wmjax.data.store import TrainingStore
from wmjax.models.vla import VLAConfig
from wmjax.sim.libero import ACTION_SPEC, OBSERVATION_SPEC

if TYPE_CHECKING:
    from wmjax.experiment.config import Experiment


def with_dimensions(model: VLAConfig, observation: ObservationSpec, action: ActionSpec, where: str) -> VLAConfig:
    """The network's settings with the sizes of its demonstrations.

    Args:
        model: its sizes are 0 where no setting gives them.
        observation: of the demonstrations.
        action: of the demonstrations.
        where: what the demonstrations are, for the error.

    Raises:
        UserError: a given size differs.

    """
    found: dict[str, Any] = {
        "action_dim": action.dim,
        "grippers": len(action.grippers),
        "state_dim": observation.state_dim,
    }
    for name, size in found.items():
        if (given := getattr(model, name)) not in (0, size):
            raise UserError(f"model.{name} is {given}, but {where} has {size}; leave model.{name} out, it follows")
    return dataclasses.replace(model, **found)


def of_store(experiment: "Experiment", store: TrainingStore | None) -> "Experiment":
    """An experiment with the values that follow from a training store: the network's sizes, and the latents' camera.

    Without a store the sizes are taken to be LIBERO's, and the cameras those of ``data.observation``.

    Raises:
        UserError: a given size differs.

    """
    model, spec = experiment.model, experiment.data.observation if store is None else store.spec
    if store is not None:
        model = with_dimensions(model, spec, store.action_spec, f"data.path {store.folder}")
    else:
        model = dataclasses.replace(
            model,
            action_dim=model.action_dim or ACTION_SPEC.dim,
            grippers=model.grippers or len(ACTION_SPEC.grippers),
            state_dim=model.state_dim or OBSERVATION_SPEC.state_dim,
        )
    return dataclasses.replace(experiment, model=model, encoder=experiment.encoder.with_default_camera(spec.cameras))
