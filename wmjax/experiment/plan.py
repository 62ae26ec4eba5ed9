"""A run's plan: everything that is resolved and checked once, before anything is recorded, encoded or trained."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wmjax.core import distributed
from wmjax.core.devices import require_devices
from wmjax.core.errors import UserError
from wmjax.core.files import write_json
from wmjax.core.location import Location
from wmjax.core.paths import cache_root
from wmjax.core.reading import read_json
from wmjax.core.settings import dotted
from wmjax.core.specs import EncoderSpec
from wmjax.data.store import TrainingStore
from wmjax.data.union import UnionStore
from wmjax.experiment.checks import given_store, require_consistent
from wmjax.experiment.config import FOLDERS, RESUMABLE, Experiment, to_dict
from wmjax.experiment.dimensions import of_store
from wmjax.experiment.latent_settings import latent_spec, require_camera
from wmjax.models.backbones.base import BACKBONES
from wmjax.models.backbones.pretrained import backbone_folder, backbone_hash
from wmjax.rollout.protocol import Protocol
from wmjax.rollout.protocol_list import Cell
from wmjax.sim.libero import simulator_version
from wmjax.trainer import checkpoint as checkpoints
from wmjax.trainer.sharding import make_mesh, require_divisible


@dataclasses.dataclass(frozen=True)
class StartingWeights:
    """The folder of a backbone's published weights, and their hash; both None if it starts from random values."""

    folder: Path | None = None
    hash: str | None = None


@dataclasses.dataclass(frozen=True)
class RunPlan:
    """A run that can be trained and evaluated to its end, as far as that is known before it starts.

    Attributes:
        experiment: all settings.
        folder: the run's folder.
        store: the demonstrations that ``data.path`` or ``data.paths`` name; None if they are recorded by the run.
        latent_spec: of the latents that the run trains on, whose statistics come with their store; None if the model
            reads none: then no encoder is needed.
        weights: of the backbone.
        evaluation: protocol of the closed loop, on the tasks that are trained on; None if it does not follow.

    """

    experiment: Experiment
    folder: Path
    store: TrainingStore | None
    latent_spec: EncoderSpec | None
    weights: StartingWeights
    evaluation: Cell | None

    @property
    def protocol(self) -> Protocol | None:
        """The protocol of the evaluation as it is run."""
        return self.evaluation.protocol if self.evaluation else None

    @property
    def settings(self) -> dict[str, Any]:
        """The contents of ``config.json``: the resolved settings, and the identities of data and weights."""
        identities: dict[str, Any] = {
            "data_identity": self.experiment.data.identity(),
            "backbone_hash": self.weights.hash,
        }
        if isinstance(self.store, UnionStore):
            identities["stores"] = [store.hash for store in self.store.stores]
        return json.loads(json.dumps({**to_dict(self.experiment), **identities}))

    def evaluation_folder(self, checkpoint: Path) -> Path:
        """The results folder of a checkpoint's evaluation."""
        assert self.evaluation is not None
        return self.evaluation.folder(checkpoints.evaluations(checkpoint))


def plan_run(experiment: Experiment, folder: Path | None = None, *, evaluates: bool = True) -> RunPlan:
    """Resolves and checks everything that a run depends on. May download, but records, writes and trains nothing.

    Args:
        experiment: all settings.
        folder: the run's folder; ``<cache>/runs/<name>`` when None.
        evaluates: whether the closed-loop evaluation follows the training.

    Raises:
        UserError: settings that contradict each other, data, weights or an encoder that are missing or do not fit.

    """
    store = given_store(experiment)
    if store is not None:
        experiment = of_store(experiment, store)
    evaluation = require_consistent(experiment, store, evaluates=evaluates)
    distributed.join()
    require_devices()
    require_divisible(experiment.train.batch_size, make_mesh(experiment.mesh))
    if evaluates or not experiment.data.places:  # the simulator is needed: say now that it is missing
        simulator_version()
    return RunPlan(
        experiment=experiment,
        folder=folder or default_folder(experiment),
        store=store,
        latent_spec=distributed.first(lambda: _latent_spec(experiment)),
        weights=distributed.first(lambda: starting_weights(experiment)),
        evaluation=evaluation,
    )


def _latent_spec(experiment: Experiment) -> EncoderSpec | None:
    """The spec of the latents, None if the model reads none; their cameras must exist either way, for the shifts."""
    if experiment.model.memory.reads_latents:
        return latent_spec(experiment.encoder, experiment.data)
    if not experiment.data.path:
        require_camera(experiment.encoder, experiment.data.observation.cameras)
    return None


def default_folder(experiment: Experiment) -> Path:
    """The run's folder in the cache."""
    return cache_root() / "runs" / experiment.name


def starting_weights(experiment: Experiment) -> StartingWeights:
    """The published weights that the backbone starts from, checked against the settings; none for a Prophet alone.

    Raises:
        UserError: there are no such weights, or they do not fit the settings.

    """
    name = experiment.train.published
    if name is None or experiment.train.objective == "world":
        return StartingWeights()
    folder = backbone_folder(name)
    config = experiment.model.backbone
    BACKBONES.resolve(config.kind).require_weights(folder, config, experiment.prompt)
    return StartingWeights(folder, backbone_hash(folder))


def save_settings(run: Path, values: dict[str, Any]) -> None:
    """Writes a run's ``config.json``, which a later start of the run must agree with.

    Raises:
        UserError: the folder holds a run of other settings; names the first one that differs.

    """
    old = started_settings(run)
    if old is not None and (changed := first_difference(old, values)):
        key, before, now = changed
        raise UserError(
            f"run {run} was started with {key} = {before!r}, now it is {now!r}; "
            "choose another folder with --run, or delete this one"
        )
    write_json(run / "config.json", values)


def started_settings(run: Path) -> dict[str, Any] | None:
    """The contents of a run's ``config.json``; None before its training began, when other settings may be chosen."""
    path = run / "config.json"
    started = (run / "metrics.jsonl").exists() or any((run / "checkpoints").glob("*/manifest.json"))
    return read_json(path, dict[str, Any], "choose another folder with --run") if started and path.is_file() else None


def first_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """The first setting, by name, in which two saved experiments differ, with both values; None if they are equal.

    A run may resume with other settings of :data:`wmjax.experiment.config.RESUMABLE`, and with one place for another;
    a store in place of what is made here, or the reverse, is another experiment.
    """
    before, now = dotted(old), dotted(new)
    defaults = dotted(to_dict(Experiment("", "", ""))).items()
    before = {**{k: v for k, v in defaults if k in now}, **before}  # the committed cells of a sweep lack some
    places = ["data.paths", *(f"{group}.{name}" for group, name in FOLDERS)]
    free = {*RESUMABLE, *(k for k in places if before.get(k) and now.get(k))}
    changed = [k for k in sorted(before.keys() | now.keys()) if before.get(k) != now.get(k) and k not in free]
    return (changed[0], before.get(changed[0]), now.get(changed[0])) if changed else None


def require_saved(run: Location, values: dict[str, Any]) -> None:
    """Checks that this process can read the run that the first process saved, and has the same settings.

    Raises:
        UserError: another folder, another disk, or other settings.

    """
    path = run / "config.json"
    missing = isinstance(path, Path) and not path.is_file()
    if missing or read_json(path, Any, "choose another folder with --run") != values:
        raise UserError(
            f"run {run} of this process is not that of process 0; give all processes the same settings, and --run and "
            "WMJAX_CACHE on a file system that they share"
        )
