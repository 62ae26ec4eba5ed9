"""Looks into a checkpoint without a simulator: every number beside the trivial predictor that it has to beat.

python -m wmjax.diagnose --run RUN                      the run's validation split
python -m wmjax.diagnose --run RUN --split train        its training split: what it has memorised

Averaged parameters, on the run's own split by episode and task. Never records demonstrations: without the run's own
in the cache, name their store with --data. Beside the JSON file a PNG shows what the Prophet imagines: the colours of
predicted and true latents, and the training frames nearest to the predicted ones.
"""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wmjax.commands import run_command
from wmjax.data.location import Location, local, location
from wmjax.errors import UserError

if TYPE_CHECKING:
    from wmjax.config import Experiment
    from wmjax.models.vla import VLA
    from wmjax.trainer.diagnostics.imagination import Imagined
    from wmjax.trainer.diagnostics.text import Section
    from wmjax.trainer.loop import Inputs

BATCHES = 16
"""Of 32 samples: all of a usual validation split."""


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m wmjax.diagnose", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, help="folder of a run, or one of its checkpoints")
    parser.add_argument("--split", choices=("val", "train"), default="val", help="which episodes are scored")
    parser.add_argument("--batches", type=int, default=BATCHES, help=f"of 32 samples, at most (default: {BATCHES})")
    parser.add_argument("--data", type=location, help="the training store of the run, if it is not in the cache")
    parser.add_argument(
        "--out", type=local, help="the JSON file (default: RUN/diagnostics/STEP-SPLIT.json); the PNG lies beside it"
    )
    return run_command(lambda: _run(parser.parse_args(arguments)))


def _run(options: argparse.Namespace) -> int:
    from wmjax import checkpoint, logs
    from wmjax.cache import keep_compiled_programs
    from wmjax.data.files import write_json
    from wmjax.trainer.diagnostics.report import diagnose
    from wmjax.trainer.diagnostics.text import plain

    logs.set_up()
    keep_compiled_programs()
    if options.batches < 1:
        raise UserError(f"--batches is {options.batches}; it must be at least 1")
    folder = checkpoint.find(options.run)
    experiment, model, inputs = load(folder, options.data)
    found = diagnose(model, inputs, options.split, options.batches, experiment.train.seed, experiment.train.trainable)
    header = describe(folder, experiment, inputs, options.split)
    print(render(header, found.sections))
    out = options.out or folder.parent.parent / "diagnostics" / f"{folder.name}-{options.split}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, plain(header | found.sections))
    print(f"\nwritten: {out}")
    if found.imagined is not None:
        print(f"written: {write_picture(out.with_suffix('.png'), found.imagined, inputs)}")
    return 0


def write_picture(path: Path, imagined: "Imagined", inputs: "Inputs") -> Path:
    """Writes what the Prophet imagines, as the camera of the latents sees it; returns the path."""
    from wmjax.data.files import atomic_path
    from wmjax.trainer.diagnostics.picture import draw

    assert inputs.latents is not None
    camera = inputs.store.spec.cameras.index(inputs.latents.spec.camera)
    with atomic_path(path) as temporary:
        draw(imagined, inputs.store, camera).save(temporary, format="PNG")
    return path


def load(folder: Path, data: Location | None = None) -> "tuple[Experiment, VLA, Inputs]":
    """The experiment of a checkpoint, its model with the averaged parameters, and the data that it was trained on.

    Raises:
        UserError: a damaged checkpoint, data that are missing or differ from what the specs in it say.

    """
    from wmjax import checkpoint
    from wmjax.config import from_dict
    from wmjax.prepare import find_latents, find_store
    from wmjax.restore import load_model
    from wmjax.trainer.inputs import make_inputs

    meta = checkpoint.read_meta(folder)
    experiment = from_dict(meta["experiment"])
    store = find_store(experiment, data)
    latents = find_latents(experiment, store, meta["specs"]["encoder"])
    inputs = make_inputs(store, latents, experiment.prompt, experiment.model, experiment.train)
    inputs.require_same(meta)
    return experiment, load_model(folder), inputs


def describe(folder: Path, experiment: "Experiment", inputs: "Inputs", split: str) -> dict[str, Any]:
    """What the numbers are of: run, step, split, and how they were made."""
    from wmjax.evaluate import identity
    from wmjax.rollout.evaluation import provenance

    episodes = inputs.val_episodes if split == "val" else inputs.train_episodes
    return {
        **provenance(),
        **identity(folder),
        "run": experiment.name,
        "step": int(folder.name),
        "split": split,
        "episodes": [int(index) for index in episodes],
        "tasks": [dataclasses.asdict(task) for task in inputs.store.tasks],
    }


def render(header: dict[str, Any], sections: "dict[str, Section]") -> str:
    """The report: one table per section."""
    from wmjax.trainer.diagnostics.report import TITLES

    lines = [
        f"run {header['run']}, step {header['step']}, {header['split']} split of {len(header['episodes'])} episodes, "
        f"commit {header['commit']}"
    ]
    for name, section in sections.items():
        lines += ["", f"== {TITLES[name]} ==", section.table()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
