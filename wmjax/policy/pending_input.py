"""The pending actions as an input of a policy's network: those still to be executed before its chunk begins."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32

from wmjax.core.specs import ActionSpec, ObservationSpec
from wmjax.data.motion import Motion, find_motion, roll_state
from wmjax.data.observation import Observation
from wmjax.data.statistics import normalise_action, normalise_state
from wmjax.experiment.config import Experiment


@dataclasses.dataclass(frozen=True)
class PendingInput:
    """The pending actions of a policy.

    Attributes:
        steps: how many there are, those of ``train.delay`` control steps; 0 for a network without this input.
        as_input: whether the network gets the actions (``model.pending``).
        motion: how they move the state that it gets; None if that stays as it is (``model.roll_state``).
        spec: of the actions, with their normalisation.

    """

    steps: int
    as_input: bool
    motion: Motion | None
    spec: ActionSpec

    @classmethod
    def of(cls, experiment: Experiment, observation: ObservationSpec, action: ActionSpec) -> "PendingInput":
        """The pending actions that the network of an experiment takes.

        Raises:
            UserError: it is not known how the actions move the state.

        """
        model = experiment.model
        motion = find_motion(observation, action) if model.roll_state else None
        return cls(experiment.pending_steps, bool(model.pending), motion, action)

    def rows(
        self, pending: Float32[Array | np.ndarray, "batch pending dim"] | None, observation: Observation
    ) -> Float32[Array | np.ndarray, "batch steps dim"] | None:
        """The actions of these steps, raw; None if there are none.

        Args:
            pending: of these steps at least; None at an episode's first decision, when the robot holds still until the
                first chunk takes effect.
            observation: the batch.

        Raises:
            ValueError: they are missing after the first decision, or it is not known what holds the robot still.

        """
        if not self.steps:
            return None
        if pending is not None:
            return pending[:, : self.steps]
        if not np.all(observation.first):
            raise ValueError(f"pending actions are missing after an episode's first decision; give {self.steps}")
        if not self.spec.hold:
            raise ValueError("pending actions are missing, and without ActionSpec.hold none are known at the start")
        hold = np.array(self.spec.hold, np.float32)
        return np.broadcast_to(hold, (len(observation.state), self.steps, len(hold)))

    def inputs(
        self, state: Float32[Array, "batch state"], rows: Float32[Array, "batch steps dim"] | None
    ) -> dict[str, Any]:
        """``state`` and ``pending`` of a :class:`wmjax.models.inputs.ModelInput`, normalised; traceable by jax."""
        pending = normalise_action(rows, self.spec, state) if self.as_input and rows is not None else None
        if self.motion is not None and rows is not None:
            state = roll_state(jnp.asarray(state), rows, self.motion)
        return {"state": normalise_state(state, self.spec), "pending": pending}
