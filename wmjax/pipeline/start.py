"""Training that goes on from another run's policy: what is taken over from its checkpoint, and what is not."""

import dataclasses
import functools
import logging
import operator
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.sharding import Sharding

from wmjax.core.errors import UserError
from wmjax.core.specs import ActionSpec, EncoderSpec, ObservationSpec, from_dict, require_equal
from wmjax.experiment.config import Experiment
from wmjax.experiment.config import from_dict as experiment_from_dict
from wmjax.models.parameters import from_named, to_named
from wmjax.models.vla import VLAConfig
from wmjax.policy.restore import averaged_parameters
from wmjax.trainer import checkpoint
from wmjax.trainer.config import Inputs

log = logging.getLogger("wmjax.train")
SHOWN = 4
"""Names of parameters that the log lists of those that were not taken over."""


@dataclasses.dataclass(frozen=True)
class Start:
    """The checkpoint from which a training starts, and what was saved in it beside the parameters."""

    folder: Path
    meta: dict[str, Any]

    @property
    def is_world(self) -> bool:
        """Whether it is of a Prophet that was trained alone."""
        return self.experiment.train.objective == "world"

    @functools.cached_property
    def experiment(self) -> Experiment:
        """The settings that it was trained with."""
        return experiment_from_dict(self.meta["experiment"])

    def require_fit(self, model: VLAConfig) -> None:
        """Refuses a Prophet that was trained alone if the model has none, or another one.

        Raises:
            UserError: names the first setting that differs, and both values.

        """
        if not self.is_world:
            return
        where, saved = f"train.init_from {self.folder}", self.experiment.model
        if model.memory.input not in ("latents", "constant"):
            raise UserError(
                f"{where} is a Prophet of latents, but with model.memory.input {model.memory.input!r} there is none; "
                "leave train.init_from out"
            )
        settings = [f"prophet.{field.name}" for field in dataclasses.fields(model.prophet)]
        settings += ["world.target", "world.layer_norm", "memory.target"]
        if "state" in saved.prophet.condition:
            settings += ["use_state", "state_dim"]
        for name in settings:
            mine, theirs = operator.attrgetter(name)(model), operator.attrgetter(name)(saved)
            if mine != theirs:
                raise UserError(f"model.{name} is {mine!r}, the Prophet of {where} has {theirs!r}; use that")

    def fit_inputs(self, inputs: Inputs) -> Inputs:
        """The inputs in the checkpoint's units: its parameters are for values normalised as there.

        Of a Prophet that was trained alone these are the latents', and the state's if it is conditioned on it.

        Raises:
            UserError: the data's observation spec is not the checkpoint's, or the chunk has another length; latents
                that are not of the Prophet's encoder.

        """
        specs = self.meta["specs"]
        names = "the training data", f"train.init_from {self.folder}"
        if self.is_world and inputs.encoder_spec is not None:
            encoder = from_dict(EncoderSpec, specs["encoder"], names[1])
            require_equal(inputs.encoder_spec, encoder, *names, ignore=("mean", "std"))
        if self.is_world and not self.experiment.model.prophet.condition:
            return inputs.with_statistics(specs["encoder"], names[1])
        require_equal(inputs.store.spec, from_dict(ObservationSpec, specs["observation"], names[1]), *names)
        saved = from_dict(ActionSpec, specs["action"], names[1])
        if saved.chunk != inputs.action_spec.chunk:
            raise UserError(
                f"model.chunk is {inputs.action_spec.chunk}, the policy of train.init_from {self.folder} has "
                f"{saved.chunk}; use that"
            )
        fitted = dataclasses.replace(inputs, action_spec=saved)
        return fitted.with_statistics(specs["encoder"], names[1])

    def load(self, params: nnx.State, frozen: nnx.State) -> tuple[nnx.State, nnx.State]:
        """Puts the checkpoint's averaged parameters in the place of those of the same name and shape; logs the rest.

        Raises:
            UserError: no parameter is of the same name and shape.

        """
        saved = averaged_parameters(self.folder, self.experiment)
        named = to_named(params)
        taken = {name: saved[name] for name in named if name in saved and saved[name].shape == named[name].shape}
        if not taken:
            raise UserError(
                f"train.init_from {self.folder}: none of its {len(saved)} parameters fits this model; name a run of "
                "the same scale"
            )
        log.info("%d of %d parameters are those of %s", len(taken), len(named), self.folder)
        for what, names in (("new", named.keys() - taken.keys()), ("left out", saved.keys() - taken.keys())):
            if names:
                log.info("%d %s: %s", len(names), what, _listed(sorted(names)))
        placed = {name: jax.device_put(value, _sharding(named[name])) for name, value in taken.items()}
        return from_named(params, named | placed), frozen


def starting_point(run: str) -> Start | None:
    """The checkpoint that ``train.init_from`` names; None if it is empty.

    Raises:
        UserError: there is no complete checkpoint, or it is damaged.

    """
    if not run:
        return None
    try:
        folder = checkpoint.find(Path(run))
    except UserError as error:
        raise UserError(f"train.init_from: {error}") from error
    return Start(folder, checkpoint.read_meta(folder))


def _sharding(array: jax.Array) -> Sharding:
    return array.sharding


def _listed(names: list[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
