"""A run's demonstrations: the train command records them once, and commands that read the run find them again."""

from pathlib import Path

from wmjax.core.errors import UserError
from wmjax.core.location import Location
from wmjax.core.paths import cache_root
from wmjax.data.store import TrainingStore
from wmjax.experiment.checks import given_store
from wmjax.experiment.config import Experiment
from wmjax.recording.record import record


def demonstrations(experiment: Experiment) -> TrainingStore:
    """The training store of the experiment: a given one, or recorded here once per data config."""
    data = experiment.data
    if (given := given_store(experiment)) is not None:
        return given
    folder = recorded_folder(experiment)
    if (folder / "manifest.json").is_file():
        return TrainingStore(folder)
    return record(
        folder,
        data.suite,
        data.tasks,
        data.episodes_per_task,
        data.observation,
        workers=data.workers,
        config=data.demonstrations,
    )


def find_store(experiment: Experiment, data: Location | None) -> TrainingStore:
    """The demonstrations that a run was trained on: the given ones, or what it recorded. Never records any.

    Raises:
        UserError: they are not there; recording others would take half an hour and be other data.

    """
    several = len(experiment.data.places)
    if data is not None and several > 1:
        raise UserError(f"--data is {data}, but the run has {several} training stores; leave it out, and put them back")
    if data is not None:
        return TrainingStore(data)
    if (given := given_store(experiment)) is not None:
        return given
    folder = recorded_folder(experiment)
    if not (folder / "manifest.json").is_file():
        raise UserError(f"demonstrations {folder} are not in the cache; name the run's training store with --data")
    return TrainingStore(folder)


def recorded_folder(experiment: Experiment) -> Path:
    """The folder of an experiment's demonstrations that were recorded here."""
    return cache_root() / "demos" / f"{experiment.dataset}-{experiment.data.identity()}"
