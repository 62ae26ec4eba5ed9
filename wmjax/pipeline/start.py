"""Training that starts from another run's policy: which parameters are taken from its checkpoint."""

import dataclasses
import logging
import operator
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
from flax import nnx
from jax.sharding import Sharding

from wmjax.core.errors import UserError
from wmjax.core.specs import ActionSpec, EncoderSpec, ObservationSpec, from_dict, require_equal
from wmjax.experiment.config import Experiment
from wmjax.models.parameters import from_named, to_named
from wmjax.models.vla import VLAConfig
from wmjax.policy.restore import parameter_shapes
from wmjax.policy.saved import SavedPolicy, find_policy
from wmjax.trainer.config import Inputs

log = logging.getLogger("wmjax.train")
MAX_LISTED = 200
"""Names of parameters that the log lists of those that were not taken over."""
STATE, ACTION = ("state", "state_units"), ("names", "units", "definition", "grippers", "relative_to")
"""Fields of an ObservationSpec and of an ActionSpec by which a state and an action are those of the same robot."""
End = Literal["state", "action"]
"""The parts of the network whose sizes are a robot's: what reads its state, and what makes its actions."""


@dataclasses.dataclass(frozen=True)
class Start:
    """The policy, or the Prophet that was trained alone, from which a training starts."""

    saved: SavedPolicy

    @property
    def folder(self) -> Path:
        """The folder of the checkpoint or of the policy."""
        return self.saved.folder

    @property
    def experiment(self) -> Experiment:
        """The settings of its training."""
        return self.saved.experiment

    @property
    def is_world(self) -> bool:
        """Whether the checkpoint is of a Prophet that was trained alone."""
        return self.experiment.train.objective == "world"

    def require_same_prophet(self, model: VLAConfig) -> None:
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

    def adopt_statistics(self, inputs: Inputs) -> Inputs:
        """The inputs in the checkpoint's units, because its parameters are for values normalised in that way.

        Of a Prophet that was trained alone these are the latents', and the state's if it is conditioned on it. The
        states or actions of another robot (:meth:`new_ends`) keep the units of the data.

        Raises:
            UserError: the same robot with other observations, or the same actions in chunks of another length; latents
                that are not of the Prophet's encoder.

        """
        specs = self.saved.meta["specs"]
        names = "the training data", f"train.init_from {self.folder}"
        if self.is_world and inputs.encoder_spec is not None:
            encoder = from_dict(EncoderSpec, specs["encoder"], names[1])
            require_equal(inputs.encoder_spec, encoder, *names, ignore=("mean", "std"))
        if self.is_world and not self.experiment.model.prophet.condition:
            return inputs.with_statistics(specs["encoder"], names[1])
        ends, saved = self.new_ends(inputs), from_dict(ActionSpec, specs["action"], names[1])
        observation = from_dict(ObservationSpec, specs["observation"], names[1])
        if ends:
            log.info(_another_robot(inputs, observation, saved, ends), self.folder)
        else:
            require_equal(inputs.store.spec, observation, *names)
        if "action" not in ends and saved.chunk != inputs.action_spec.chunk:
            raise UserError(
                f"model.chunk is {inputs.action_spec.chunk}, the policy of train.init_from {self.folder} has "
                f"{saved.chunk}; use that"
            )
        adopted = dataclasses.replace(inputs, action_spec=_in_units(inputs.action_spec, saved, ends))
        return adopted.with_statistics(specs["encoder"], names[1])

    def new_ends(self, inputs: Inputs) -> tuple[End, ...]:
        """The ends of the network that another robot's data need new; none for the robot of the checkpoint.

        A Prophet that was trained alone has no such ends: what it is conditioned on must be the same.
        """
        if self.is_world:
            return ()
        specs, where = self.saved.meta["specs"], f"train.init_from {self.folder}"
        observation = from_dict(ObservationSpec, specs["observation"], where)
        action = from_dict(ActionSpec, specs["action"], where)
        ends: list[End] = ["state"] if _differing(inputs.store.spec, observation, STATE) else []
        if _differing(inputs.action_spec, action, ACTION) or (ends and action.relative_to):
            ends.append("action")
        return tuple(ends)

    def load(self, params: nnx.State, frozen: nnx.State, new: Collection[str] = ()) -> tuple[nnx.State, nnx.State]:
        """Replaces parameters by the checkpoint's averaged ones of the same name and shape; logs the others.

        Args:
            params: what is trained.
            frozen: the rest, which is returned as it is.
            new: names of parameters that stay as they are even if the shape is the same.

        Raises:
            UserError: no parameter is of the same name and shape.

        """
        saved, named = self.saved.parameters(), to_named(params)
        matching = {name for name in named if name in saved and saved[name].shape == named[name].shape}
        taken = {name: saved[name] for name in matching - set(new)}
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
    """The policy that ``train.init_from`` names; None if it is empty.

    Raises:
        UserError: there is none, or it is damaged.

    """
    if not run:
        return None
    try:
        return Start(find_policy(run, acts=False))
    except UserError as error:
        raise UserError(f"train.init_from: {error}") from error


def end_parameters(experiment: Experiment, ends: Sequence[End]) -> frozenset[str]:
    """Names of the trained parameters whose shape depends on the size of a state or of an action."""
    model = experiment.model
    if "state" in ends:
        model = dataclasses.replace(model, state_dim=model.state_dim + 1)
    if "action" in ends:  # one gripper more and one other dimension more: some heads have a part for each
        model = dataclasses.replace(model, action_dim=model.action_dim + 2, grippers=model.grippers + 1)
    shapes, others = (parameter_shapes(dataclasses.replace(experiment, model=m)) for m in (experiment.model, model))
    return frozenset(name for name, leaf in shapes.items() if name not in others or others[name].shape != leaf.shape)


def _in_units(data: ActionSpec, saved: ActionSpec, ends: Sequence[End]) -> ActionSpec:
    """The data's actions and states, of the ends that are not new in the units of a saved spec."""
    units: dict[str, Any] = {}
    if "state" not in ends:
        units |= {"state_offset": saved.state_offset, "state_scale": saved.state_scale}
    if "action" not in ends:  # a gripper's are always those of its open and its closed value in the data
        units["normalisation"] = saved.normalisation
        for name in ("offset", "scale"):
            pairs = enumerate(zip(getattr(data, name), getattr(saved, name), strict=True))
            units[name] = tuple(mine if index in data.grippers else theirs for index, (mine, theirs) in pairs)
    return dataclasses.replace(data, **units)


def _another_robot(inputs: Inputs, observation: ObservationSpec, action: ActionSpec, ends: Sequence[End]) -> str:
    """What differs, for the log; has a ``%s`` for the checkpoint's folder."""
    spec = inputs.store.spec
    others = [field.name for field in dataclasses.fields(spec) if _differing(spec, observation, (field.name,))]
    actions = [name for name in ACTION if _differing(inputs.action_spec, action, (name,))]
    robot = (
        "other train.delta_actions than those"
        if not others and actions == ["relative_to"]
        else "another robot than that"
    )
    return (
        f"{robot} of %s: states of {spec.state_dim} values (there {observation.state_dim}), actions of "
        f"{inputs.action_spec.dim} (there {action.dim}); observations differ in {', '.join(others) or 'nothing'}, "
        f"actions in {', '.join(actions) or 'nothing'}; new: {' and '.join(ends)} end"
    )


def _differing(mine: Any, theirs: Any, fields: Sequence[str]) -> bool:
    return any(getattr(mine, name) != getattr(theirs, name) for name in fields)


def _sharding(array: jax.Array) -> Sharding:
    return array.sharding


def _listed(names: list[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(names[:MAX_LISTED]) + more
