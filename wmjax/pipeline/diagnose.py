"""The diagnosis of a checkpoint without a simulator, written as tables, JSON and a picture."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import numpy as np

from wmjax.core.errors import UserError
from wmjax.core.files import atomic_path, write_json
from wmjax.core.location import Location, Remote
from wmjax.core.paths import enable_compilation_cache, require_place
from wmjax.core.provenance import provenance
from wmjax.core.specs import require_equal
from wmjax.data.latents import LatentStore
from wmjax.data.store import TrainingStore
from wmjax.data.weights import Mixture
from wmjax.diagnostics.diagnosis import TITLES, diagnose, diagnose_prophet
from wmjax.diagnostics.imagined_frames import Imagined
from wmjax.diagnostics.picture import draw
from wmjax.diagnostics.section import Section, plain
from wmjax.experiment.config import Experiment
from wmjax.pipeline.demonstrations import find_store
from wmjax.pipeline.evaluate_checkpoint import identity
from wmjax.pipeline.latents import encode, find_latents
from wmjax.policy.fetch import fetch_policy
from wmjax.policy.places import Places
from wmjax.policy.saved import find_policy
from wmjax.trainer import checkpoint
from wmjax.trainer.config import Inputs
from wmjax.trainer.inputs import make_inputs

BATCHES = 16
"""Of 32 samples: all of a usual validation split."""


def diagnose_checkpoint(
    run: Location,
    *,
    split: Literal["val", "train"] = "val",
    batches: int = BATCHES,
    data: Location | None = None,
    held_out: Location | None = None,
    out: Path | None = None,
    places: Places | None = None,
) -> None:
    """Prints the diagnosis of a checkpoint and writes it beside the run; for a Prophet alone, its part of it.

    Args:
        run: a run's folder, whose newest checkpoint is taken, or one of its checkpoints.
        split: ``val`` or ``train``.
        batches: of 32 samples, at most.
        data: the run's training store, if it is not in the cache.
        held_out: another training store, on all of whose episodes the Prophet is scored.
        out: the JSON file; ``RUN/diagnostics/STEP-SPLIT.json`` when None. The picture is written beside it.
        places: what to use in place of folders that the run's settings name, as on another machine.

    Raises:
        UserError: ``batches`` below 1; no complete checkpoint; data that are missing or not the run's.

    """
    enable_compilation_cache()
    if batches < 1:
        raise UserError(f"--batches is {batches}; it must be at least 1")
    folder = checkpoint.find(fetch_policy(run) if isinstance(run, Remote) else run)
    name = split if held_out is None else "held-out"
    out = out or folder.parent.parent / "diagnostics" / f"{folder.name}-{name}.json"
    require_place(out, "--out", "JSON file")
    experiment, model, inputs = load(folder, data, places)
    scored = inputs if held_out is None else as_held_out(experiment, inputs, TrainingStore(held_out))
    if held_out is not None or experiment.train.objective == "world":
        found = diagnose_prophet(model, inputs, scored, split, batches)
    else:
        found = diagnose(model, inputs, split, batches, experiment.train.seed, experiment.train.trainable)
    header = describe(folder, experiment, scored, split)
    print(render(header, found.sections))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, plain(header | found.sections))
    print(f"\nwritten: {out}")
    if found.imagined is not None:
        print(f"written: {write_picture(out.with_suffix('.png'), found.imagined, inputs)}")


def write_picture(path: Path, imagined: Imagined, inputs: Inputs) -> Path:
    """Writes a picture of the Prophet's predictions for the first camera of the latents; returns the path."""
    assert isinstance(inputs.latents, LatentStore)
    with atomic_path(path) as temporary:
        draw(imagined, inputs.store, inputs.cameras[0]).save(temporary, format="PNG")
    return path


def as_held_out(experiment: Experiment, inputs: Inputs, store: TrainingStore) -> Inputs:
    """Another store as data of a run: all of its episodes are held out, and all values are in the run's units.

    Raises:
        UserError: its observations are not the run's.

    """
    require_equal(store.spec, inputs.store.spec, str(store.folder), "the run's training store")
    encoder = dataclasses.replace(experiment.encoder, path="", views=1)  # no view of what is only scored is shifted
    latents = encode(dataclasses.replace(experiment, encoder=encoder), store) if inputs.encoder_spec else None
    other = make_inputs(store, latents, experiment.prompt, experiment.model, experiment.train)
    episodes = np.arange(len(store.episodes), dtype=np.int32)
    return dataclasses.replace(
        other, encoder_spec=inputs.encoder_spec, action_spec=inputs.action_spec, val_episodes=episodes
    )


def load(folder: Path, data: Location | None = None, places: Places | None = None) -> tuple[Experiment, Any, Inputs]:
    """The experiment of a checkpoint, its model with the averaged parameters, and the data that it was trained on.

    Raises:
        UserError: a damaged checkpoint, data that are missing or differ from what the specs in it say.

    """
    found = find_policy(folder, places, acts=False)
    meta, experiment = found.meta, found.experiment
    store = find_store(experiment, data)
    latents = find_latents(experiment, store, meta["specs"]["encoder"])
    labelled = Mixture(labelled_per_task=experiment.data.labelled_per_task)
    inputs = make_inputs(store, latents, experiment.prompt, experiment.model, experiment.train, labelled)
    return experiment, found.model(), inputs.as_in(meta)


def describe(folder: Path, experiment: Experiment, inputs: Inputs, split: str) -> dict[str, Any]:
    """The subject of the numbers: run, step, split, and how they were computed."""
    episodes = inputs.val_episodes if split == "val" else inputs.train_episodes
    return {
        **provenance(),
        **identity(folder, acts=False),
        "run": experiment.name,
        "step": int(folder.name),
        "split": split,
        "episodes": [int(index) for index in episodes],
        "tasks": [dataclasses.asdict(task) for task in inputs.store.tasks],
    }


def render(header: dict[str, Any], sections: dict[str, Section]) -> str:
    """The report: one table per section."""
    lines = [
        f"run {header['run']}, step {header['step']}, {header['split']} split of {len(header['episodes'])} episodes, "
        f"commit {header['commit']}"
    ]
    for name, section in sections.items():
        lines += ["", f"== {TITLES[name]} ==", section.table()]
    return "\n".join(lines)
