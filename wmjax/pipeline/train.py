"""The stages of a training run, in order: settings, demonstrations, latents, training, closed loop, verdict."""

import dataclasses
import functools
import json
import logging
from pathlib import Path
from typing import Any

from wmjax.core import distributed, logs
from wmjax.core.errors import UserError
from wmjax.core.paths import cache_root, keep_compiled_programs
from wmjax.data.latents import LatentStore
from wmjax.data.store import TrainingStore
from wmjax.experiment.checks import final_protocol, given_store, require_fit
from wmjax.experiment.config import PLACES, RESUMABLE, Experiment, dotted, load, to_dict
from wmjax.experiment.dimensions import of_store
from wmjax.experiment.dry_run import describe
from wmjax.experiment.latent_settings import latent_spec
from wmjax.models.backbones.pretrained import (
    backbone_folder,
    backbone_hash,
    load_backbone,
    require_architecture,
    require_tokenizer,
)
from wmjax.models.prompts import tokenizer_folder
from wmjax.models.vla import VLA
from wmjax.pipeline.demonstrations import demonstrations
from wmjax.pipeline.evaluate_checkpoint import evaluate_checkpoint
from wmjax.pipeline.latents import encode
from wmjax.pipeline.verdict import verdict
from wmjax.rollout.protocol import load_protocol, protocol_folder
from wmjax.trainer import checkpoint as checkpoints
from wmjax.trainer.inputs import make_inputs
from wmjax.trainer.loop import train


def run(
    recipe: str,
    scale: str,
    dataset: str | None,
    settings: dict[str, Any],
    *,
    folder: Path | None = None,
    dry_run: bool = False,
    evaluates: bool = True,
) -> None:
    """Runs all stages of an experiment, or as far as is asked for.

    Args:
        recipe: a file of ``train/recipes``.
        scale: a file of ``train/scales``.
        dataset: a file of ``train/data``; the scale's when None.
        settings: nested settings, laid over the files.
        folder: the run's folder; ``<cache>/runs/<name>`` when None.
        dry_run: print what would happen and touch neither data nor weights.
        evaluates: whether the closed-loop evaluation follows the training.

    Raises:
        UserError: bad settings, data or weights.

    """
    keep_compiled_programs()
    experiment = load(recipe, scale, dataset, settings)
    given = given_store(experiment, needed=not dry_run)
    if given is not None:
        experiment = dataclasses.replace(experiment, model=of_store(experiment.model, given))
    require_fit(experiment, given, evaluates=evaluates)
    run = folder or cache_root() / "runs" / experiment.name
    distributed.join()
    if distributed.is_first():
        log = logs.set_up(None if dry_run else run / "log.txt")
    else:
        log = logs.set_up(level=logging.WARNING)
    # 1. What will run.
    log.info("recipe %s, scale %s, data %s -> %s", experiment.recipe, experiment.scale, experiment.dataset, run)
    if dry_run:
        text = describe(experiment)
        distributed.alone(lambda: print(text))
        return
    backbone = distributed.first(lambda: starting_backbone(experiment))
    distributed.first(lambda: latent_spec(experiment.encoder, experiment.data))
    identities = {"data_identity": experiment.data.identity(), "backbone_hash": backbone[1]}
    values = {**to_dict(experiment), **identities}
    distributed.alone(lambda: _save_config(run, values))
    _require_config(run, values)
    # 2. Demonstrations.
    store = distributed.first(lambda: demonstrations(experiment))
    if evaluates:  # demonstrations of another simulator would be refused there, after the training
        environment = final_protocol(experiment, store).environment
        distributed.alone(lambda: environment.simulator(store.spec))
    # 3. Latents.
    latents = distributed.first(lambda: encode(experiment, store))
    # 4. Training.
    checkpoint = fit(experiment, store, latents, run, backbone)
    # 5. Closed loop. 6. The verdict.
    if evaluates:
        distributed.alone(lambda: print(verdict(experiment, run, judge(experiment, checkpoint))))


def _save_config(run: Path, values: dict[str, Any]) -> None:
    """Writes ``config.json``, or refuses a folder that holds another experiment."""
    path = run / "config.json"
    if path.is_file():
        old, new = dotted(json.loads(path.read_text())), dotted(values)
        old = {**dotted(to_dict(Experiment("", "", ""))), **old}  # settings that are younger than the run
        # One place for another; a store in place of what is made here, or the reverse, is another experiment.
        free = {*RESUMABLE, *(k for k in PLACES if old.get(k) and new.get(k))}
        changed = [k for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k) and k not in free]
        if changed:
            key = changed[0]
            raise UserError(
                f"run {run} was started with {key} = {old.get(key)!r}, now it is {new.get(key)!r}; "
                "choose another folder with --run, or delete this one"
            )
    run.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=1))


def _require_config(run: Path, values: dict[str, Any]) -> None:
    """Refuses a process that does not see the run that the first process prepared, or has other settings."""
    path = run / "config.json"
    if not path.is_file() or json.loads(path.read_text()) != json.loads(json.dumps(values)):
        raise UserError(
            f"run {run} of this process is not that of process 0; give all processes the same settings, and --run and "
            "WMJAX_CACHE on a file system that they share"
        )


def starting_backbone(experiment: Experiment) -> tuple[Path | None, str | None]:
    """The folder of the backbone's weights and their hash, checked before anything is recorded; None, None if random.

    Raises:
        UserError: there are no such weights, or they do not fit the settings.

    """
    name = experiment.train.published
    if name is None:
        return None, None
    folder = backbone_folder(name)
    require_architecture(folder, experiment.model.backbone)
    require_tokenizer(folder, tokenizer_folder(experiment.prompt.tokenizer))
    return folder, backbone_hash(folder)


def fit(
    experiment: Experiment,
    store: TrainingStore,
    latents: LatentStore,
    run: Path,
    backbone: tuple[Path | None, str | None],
) -> Path:
    """Trains the experiment's model from :func:`starting_backbone`; returns the last checkpoint's folder."""
    folder, base = backbone
    return train(
        lambda rngs: VLA(experiment.model, rngs=rngs),
        make_inputs(store, latents, experiment.prompt, experiment.model, experiment.train),
        run,
        experiment.train,
        experiment.optimizer,
        experiment.mesh,
        max_shift=experiment.encoder.max_shift,
        meta={"experiment": to_dict(experiment), "backbone_hash": base},
        on_checkpoint=functools.partial(judge_early, experiment),
        load_base=None if folder is None else functools.partial(load_backbone, folder, experiment.model.backbone),
    )


def judge_early(experiment: Experiment, step: int, checkpoint: Path) -> None:
    """Evaluates a checkpoint in the middle of training, if the settings ask for it."""
    every = experiment.evaluation.every
    if every and step % every == 0 and step < experiment.train.steps:
        print(judge(experiment, checkpoint).table())


def judge(experiment: Experiment, checkpoint: Path) -> Any:
    """Closed-loop success of a checkpoint on the experiment's protocol, on the tasks that it was trained on."""
    settings = experiment.evaluation
    protocol = final_protocol(experiment, given_store(experiment))
    out = protocol_folder(checkpoints.evaluations(checkpoint), protocol, load_protocol(settings.protocol))
    return evaluate_checkpoint(checkpoint, protocol, out, workers=settings.workers, videos=settings.videos)
