"""``python -m wmjax.train --config e2_flow``: demonstrations, latents, training, closed-loop evaluation, verdict.

Every stage is cached and resumes where it was interrupted. With several processes (:mod:`wmjax.distributed`) the first
records, encodes and evaluates while the others wait; all train. Nothing heavy is imported at module level: spawned
simulator processes import this file.
"""

import argparse
import functools
import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wmjax import distributed
from wmjax.commands import run_command, use_huge_pages

if TYPE_CHECKING:
    from wmjax.config import Experiment
    from wmjax.data.latents import LatentStore
    from wmjax.data.store import TrainingStore


def parse(arguments: list[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    """The command line: options of the command itself, and settings (``--train.steps 100``) as nested values."""
    from wmjax.data.location import local
    from wmjax.typed import parse_overrides

    parser = argparse.ArgumentParser(
        prog="python -m wmjax.train",
        description="Record, encode, train and evaluate one recipe.",
        epilog="Any setting can be given as --section.name VALUE, for example --train.steps 500.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", default="e2_flow", help="recipe: a file of train/recipes (default: e2_flow)")
    parser.add_argument("--scale", default="mini", help="a file of train/scales, such as mini_lora (default: mini)")
    parser.add_argument("--dataset", help="a file of train/data (default: the scale's)")
    parser.add_argument("--run", type=local, help="the run's folder (default: <cache>/runs/<name>)")
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would happen; touch neither data nor weights"
    )
    parser.add_argument("--no-evaluation", action="store_true", help="stop after training")
    options, rest = parser.parse_known_args(arguments)
    return options, parse_overrides(rest)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; bad input is one line and exit status 2."""
    return distributed.together(lambda: run_command(lambda: _main(sys.argv[1:] if arguments is None else arguments)))


def _main(arguments: list[str]) -> int:
    options, overrides = parse(arguments)
    from wmjax import logs
    from wmjax.cache import cache_root, keep_compiled_programs
    from wmjax.checks import given_store, require_fit
    from wmjax.config import load, to_dict
    from wmjax.encoder_settings import latent_spec
    from wmjax.prepare import demonstrations, encode
    from wmjax.sim.libero import require_simulator

    keep_compiled_programs()

    experiment = load(options.config, options.scale, options.dataset, overrides)
    require_fit(experiment, given_store(experiment, needed=not options.dry_run), evaluates=not options.no_evaluation)
    run = options.run or cache_root() / "runs" / experiment.name
    distributed.join()
    if distributed.is_first():
        log = logs.set_up(None if options.dry_run else run / "log.txt")
    else:
        log = logs.set_up(level=logging.WARNING)
    # 1. What will run.
    log.info("recipe %s, scale %s, data %s -> %s", experiment.recipe, experiment.scale, experiment.dataset, run)
    if options.dry_run:
        from wmjax.dryrun import describe

        text = describe(experiment)
        distributed.alone(lambda: print(text))
        return 0
    backbone = distributed.first(lambda: starting_backbone(experiment))
    distributed.first(lambda: latent_spec(experiment.encoder, experiment.data))
    identities = {"data_identity": experiment.data.identity(), "backbone_hash": backbone[1]}
    values = {**to_dict(experiment), **identities}
    distributed.alone(lambda: _save_config(run, values))
    _require_config(run, values)
    # 2. Demonstrations.
    store = distributed.first(lambda: demonstrations(experiment))
    if not options.no_evaluation:  # those of another simulator would be refused there, after the training
        distributed.alone(lambda: require_simulator(store.spec))
    # 3. Latents.
    latents = distributed.first(lambda: encode(experiment, store))
    # 4. Training.
    checkpoint = fit(experiment, store, latents, run, backbone)
    if options.no_evaluation:
        return 0
    # 5. Closed loop. 6. The verdict.
    distributed.alone(lambda: print(verdict(experiment, run, judge(experiment, checkpoint))))
    return 0


def _save_config(run: Path, values: dict[str, Any]) -> None:
    """Writes ``config.json``, or refuses a folder that holds another experiment."""
    from wmjax.config import PLACES, RESUMABLE, Experiment, dotted, to_dict
    from wmjax.errors import UserError

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
    from wmjax.errors import UserError

    path = run / "config.json"
    if not path.is_file() or json.loads(path.read_text()) != json.loads(json.dumps(values)):
        raise UserError(
            f"run {run} of this process is not that of process 0; give all processes the same settings, and --run and "
            "WMJAX_CACHE on a file system that they share"
        )


def starting_backbone(experiment: "Experiment") -> tuple[Path | None, str | None]:
    """The folder of the backbone's weights and their hash, checked before anything is recorded; None, None if random.

    Raises:
        UserError: there are no such weights, or they do not fit the settings.

    """
    from wmjax.models.pretrained import backbone_folder, backbone_hash, require_architecture, require_tokenizer
    from wmjax.models.prompts import tokenizer_folder

    name = experiment.train.published
    if name is None:
        return None, None
    folder = backbone_folder(name)
    require_architecture(folder, experiment.model.backbone)
    require_tokenizer(folder, tokenizer_folder(experiment.prompt.tokenizer))
    return folder, backbone_hash(folder)


def fit(
    experiment: "Experiment",
    store: "TrainingStore",
    latents: "LatentStore",
    run: Path,
    backbone: tuple[Path | None, str | None],
) -> Path:
    """Trains the experiment's model from :func:`starting_backbone`; returns the last checkpoint's folder."""
    from wmjax.config import to_dict
    from wmjax.models.pretrained import load_backbone
    from wmjax.models.vla import VLA
    from wmjax.trainer.inputs import make_inputs
    from wmjax.trainer.loop import train

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


def judge_early(experiment: "Experiment", step: int, checkpoint: Path) -> None:
    """Evaluates a checkpoint in the middle of training, if the settings ask for it."""
    every = experiment.evaluation.every
    if every and step % every == 0 and step < experiment.train.steps:
        print(judge(experiment, checkpoint).table())


def judge(experiment: "Experiment", checkpoint: Path) -> Any:
    """Closed-loop success of a checkpoint on the experiment's protocol, on the tasks that it was trained on."""
    from wmjax import checkpoint as checkpoints
    from wmjax.checks import final_protocol, given_store
    from wmjax.evaluate import evaluate_checkpoint, protocol_folder
    from wmjax.rollout.protocol import load_protocol

    settings = experiment.evaluation
    protocol = final_protocol(experiment, given_store(experiment))
    out = protocol_folder(checkpoints.evaluations(checkpoint), protocol, load_protocol(settings.protocol))
    return evaluate_checkpoint(checkpoint, protocol, out, workers=settings.workers, videos=settings.videos)


def verdict(experiment: "Experiment", run: Path, summary: Any) -> str:
    """The outcome in a few lines, the run's folder, and what to do next."""
    from wmjax.next_steps import next_steps

    lines = ["", summary.table(), "", f"run: {run}", "next:", *(f"  {line}" for line in next_steps(experiment, run))]
    return "\n".join(lines)


if __name__ == "__main__":
    use_huge_pages("wmjax.train")
    sys.exit(main())
