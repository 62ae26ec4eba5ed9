"""How an experiment's settings differ from its files: by what a user changed, and by what a device's memory allowed."""

import dataclasses
from typing import Any

from wmjax.core.errors import UserError
from wmjax.core.settings import dotted
from wmjax.experiment.config import Experiment, from_dict, load, to_dict
from wmjax.models.nn.stack import Remat

COUNTED = ("steps", "log_every", "eval_every", "eval_batches", "checkpoint_every", "keep_period")
"""Settings of ``train`` that count batches, and with smaller batches count as many more."""


def with_remat(experiment: Experiment, remat: Remat) -> Experiment:
    """The same experiment with another rematerialisation; its backbone must have that setting."""
    changed: Any = {"remat": remat}
    backbone = dataclasses.replace(experiment.model.backbone, **changed)
    return dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, backbone=backbone))


def is_auto(experiment: Experiment) -> bool:
    """Whether the rematerialisation is still to be chosen; a backbone without that setting has none."""
    return getattr(experiment.model.backbone, "remat", None) == "auto"


def with_choice(experiment: Experiment, remat: Remat, batches: int = 1) -> Experiment:
    """The experiment with a rematerialisation, and with each batch as so many smaller ones.

    Updates, and how many samples lie between two validations or checkpoints, stay the same.
    """
    train, evaluation = experiment.train, experiment.evaluation
    changed: dict[str, Any] = {name: batches * getattr(train, name) for name in COUNTED}
    changed |= {"batch_size": train.batch_size // batches, "accumulate": batches * train.accumulate}
    return dataclasses.replace(
        with_remat(experiment, remat),
        train=dataclasses.replace(train, **changed),
        evaluation=dataclasses.replace(evaluation, every=batches * evaluation.every),
    )


def as_chosen(experiment: Experiment, saved: dict[str, Any]) -> Experiment:
    """The experiment with what a run chose in place of ``auto``, by the settings in the run's ``config.json``.

    An experiment whose own settings leave no room for that choice has it without the smaller batches, and so differs.
    """
    remat = saved.get("model", {}).get("backbone", {}).get("remat")
    if not is_auto(experiment) or remat is None:
        return experiment
    batches, rest = divmod(saved.get("train", {}).get("accumulate", 1), experiment.train.accumulate)
    divides = batches > 0 and not rest and experiment.train.batch_size % batches == 0
    return with_choice(experiment, remat, batches if divides else 1)


def as_given(experiment: Experiment) -> Experiment:
    """The experiment before a choice: where its files leave the rematerialisation open, it and its batches are theirs.

    Rematerialisation and smaller batches change no parameter, so runs on different devices are of one recipe.

    Raises:
        UserError: see :func:`files_of`.

    """
    return _before_choice(experiment, files_of(experiment))


def saved_as_given(saved: dict[str, Any]) -> dict[str, Any]:
    """As :func:`as_given`, of the settings that a run has saved; as they are if their files were renamed since."""
    experiment = from_dict(saved)
    try:
        given = as_given(experiment)
    except UserError:
        return saved
    return saved if given == experiment else to_dict(given)


def _before_choice(experiment: Experiment, files: Experiment) -> Experiment:
    if not is_auto(files) or not hasattr(experiment.model.backbone, "remat"):
        return experiment
    train, every = experiment.train, experiment.evaluation.every
    batches, rest = divmod(train.accumulate, files.train.accumulate)
    counts = [rest, every % max(batches, 1), *(getattr(train, name) % max(batches, 1) for name in COUNTED)]
    if batches < 1 or any(counts):
        batches = 1
    merged: dict[str, Any] = {name: getattr(train, name) // batches for name in COUNTED}
    merged |= {"batch_size": train.batch_size * batches, "accumulate": train.accumulate // batches}
    return dataclasses.replace(
        with_remat(experiment, "auto"),
        train=dataclasses.replace(train, **merged),
        evaluation=dataclasses.replace(experiment.evaluation, every=every // batches),
    )


def files_of(experiment: Experiment) -> Experiment:
    """What the files of an experiment's recipe, scale and data say.

    Raises:
        UserError: there are no such files, or they hold an unknown setting.

    """
    # Some scales are refused without weights.
    weights = {"train": {"backbone_weights": experiment.train.backbone_weights}}
    return load(experiment.recipe, experiment.scale, experiment.dataset, weights)


def changed_settings(experiment: Experiment) -> dict[str, Any]:
    """Settings that a user changed in the files of recipe, scale and data, by dotted name; named weights always are.

    Raises:
        UserError: see :func:`files_of`.

    """
    found = files_of(experiment)
    files, settings = dotted(to_dict(found)), dotted(to_dict(_before_choice(experiment, found)))
    # The files' head, encoder or backbone may be of another kind, which has other settings.
    changed = {name: value for name, value in settings.items() if name not in files or value != files[name]}
    if experiment.train.backbone_weights:
        changed["train.backbone_weights"] = experiment.train.backbone_weights
    return changed
