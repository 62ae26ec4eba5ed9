"""Measures success in the simulator: ``python -m wmjax.evaluate --run RUN --protocol spatial_dev``."""

import argparse
import dataclasses
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from wmjax import logs
from wmjax.commands import run_command
from wmjax.data.files import hash_json
from wmjax.data.location import Location, local, location
from wmjax.errors import UserError
from wmjax.models.corruption import SHUFFLED, Corruption
from wmjax.resources import records_folder
from wmjax.rollout import actors
from wmjax.rollout.caveats import timing
from wmjax.rollout.evaluation import evaluate
from wmjax.rollout.protocol import Protocol, load_protocol, protocol_names
from wmjax.rollout.results import Summary
from wmjax.shards import WHOLE, Shard, parse_shard

if TYPE_CHECKING:
    from wmjax.config import Experiment
    from wmjax.data.donors import Donors
    from wmjax.data.latents import LatentStore
    from wmjax.data.store import TrainingStore
    from wmjax.policy import Policy
    from wmjax.rollout.album import Album

__all__ = ["evaluate", "evaluate_checkpoint", "main"]

log = logging.getLogger("wmjax.evaluate")
REPLAYS_SUCCEED = 0.99
"""Share of the replays that must succeed before any policy is worth evaluating."""
SCRIPTED = ("replay", "expert", "noop", "random")


def _integers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers such as 0,1") from None


CHANGES: dict[str, tuple[str, Callable[[str], Any], str]] = {
    "suite": ("suite", str, "suite, such as libero_object"),
    "tasks": ("tasks", _integers, "task ids, such as 0,1"),
    "episodes": ("episodes_per_task", int, "episodes per task"),
    "init": ("init", str, "starts: benchmark or random"),
    "first-index": ("first_index", int, "index of the first episode of each task"),
    "horizon": ("open_loop_horizon", int, "open-loop horizon, control steps"),
    "delay": ("execution_delay", int, "execution delay, control steps"),
    "ensemble": ("ensemble", float, "decay per control step of the weights of overlapping chunks, such as 0.01"),
    "target-velocity": ("target_velocity", float, "speed at which the goal's target drifts, m/s, such as 0.04"),
    "camera-dropout": ("camera_dropout", float, "probability that a camera is black at a decision, such as 0.5"),
    "oracle": ("oracle", float, "share of the prediction in the memory, 0..1; the rest is the expert's true future"),
    "corruption": ("corruption", str, f"what replaces the world memory: {', '.join(get_args(Corruption))}"),
    "max-steps": ("max_steps", int, "step limit, control steps"),
    "seed": ("seed", int, "seed of the policy's noise"),
}
"""Flag -> the protocol's field, its type and its help. A test keeps them complete."""


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    logs.set_up()
    return run_command(lambda: _run(_parser().parse_args(arguments)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m wmjax.evaluate", description=__doc__)
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("--run", type=Path, help="folder of a trained run")
    who.add_argument("--policy", choices=SCRIPTED, help="a scripted actor instead of a trained policy")
    parser.add_argument("--protocol", default="spatial_dev", help=f"{', '.join(protocol_names())}, or a .toml file")
    changes = parser.add_argument_group("what to change in the protocol, and to record in header.json")
    for name, (_, kind, text) in CHANGES.items():
        changes.add_argument(f"--{name}", type=kind, help=text)
    parser.add_argument(
        "--shard",
        help="i/n: run the i-th of n parts of the episodes, into one --out that all n see; under srun or "
        "jax.distributed each process takes its own",
    )
    parser.add_argument("--workers", type=int, default=2, help="simulator processes")
    parser.add_argument("--batch", type=int, default=1, help="rows per policy call; 1 is fastest on a CPU")
    parser.add_argument("--videos", type=int, default=2, help="successes and failures per task to keep as videos")
    parser.add_argument("--out", type=local, help="results folder; default RUN/evaluations/STEP/PROTOCOL")
    parser.add_argument("--data", type=location, help="training store to replay, or of the run, for a shuffled memory")
    return parser


def _run(options: argparse.Namespace) -> int:
    changes = {field: getattr(options, name.replace("-", "_")) for name, (field, _, _) in CHANGES.items()}
    unchanged = load_protocol(options.protocol)
    protocol = load_protocol(options.protocol, **changes)
    shard = parse_shard(options.shard)
    if options.run is not None:
        from wmjax import checkpoint

        folder = checkpoint.find(options.run)  # once: a run that is still training saves others meanwhile
        out = options.out or protocol_folder(checkpoint.evaluations(folder), protocol, unchanged)
        summary = evaluate_checkpoint(
            folder,
            protocol,
            out,
            workers=options.workers,
            videos=options.videos,
            batch_size=options.batch,
            shard=shard,
            data=options.data,
        )
    else:
        out = options.out or protocol_folder(Path("runs") / options.policy, protocol, unchanged)
        summary = _evaluate_scripted(options, protocol, out, shard)
    print(summary.table())
    print(f"results: {out}")
    if options.policy == "replay" and summary.overall.rate < REPLAYS_SUCCEED:
        log.error("fewer than %.0f %% of the replays succeed: the path is broken", 100 * REPLAYS_SUCCEED)
        return 1
    return 0


def evaluate_checkpoint(
    path: Path,
    protocol: Protocol,
    out: Path,
    *,
    workers: int = 2,
    videos: int = 2,
    batch_size: int = 1,
    shard: Shard = WHOLE,
    data: Location | None = None,
) -> Summary:
    """Evaluates a run's newest checkpoint, or one checkpoint's folder.

    ``data`` is the run's training store for a shuffled memory, if it is not in the cache.

    Raises:
        UserError: no complete checkpoint there, for a shuffled memory no training store or none of the protocol's
            tasks in it, or see :func:`wmjax.rollout.evaluation.evaluate`.

    """
    from wmjax import checkpoint
    from wmjax.cache import keep_compiled_programs
    from wmjax.policy import load_policy
    from wmjax.rollout.policy_actor import PolicyActor

    keep_compiled_programs()
    path = checkpoint.find(path)
    header = {**identity(path), "batch_size": batch_size}
    policy = load_policy(
        path,
        batch_size=batch_size,
        open_loop_horizon=protocol.open_loop_horizon,
        oracle=protocol.oracle,
        corruption=protocol.corruption,
    )
    header |= timing(policy, protocol)
    donors = _donors(policy, data) if protocol.corruption in SHUFFLED else None
    if donors is not None:
        for task in protocol.tasks:  # says now what is missing, not after the first tasks
            donors.choose(np.random.default_rng(0), protocol.corruption, protocol.suite, task)
        header["donors"] = {"store": donors.store.hash, "latents": donors.latents.hash}
    actor = PolicyActor(policy, protocol.seed, donors)
    album = _album(policy) if videos else None
    return evaluate(actor, protocol, out, workers, videos, header, records=records_folder(), album=album, shard=shard)


def _album(policy: "Policy") -> "Album | None":
    """Frames that a policy was trained on, by their latents, if they are at hand and its Prophet predicts such latents.

    Videos mean the same without them: nothing is made or downloaded for it.
    """
    from wmjax.prepare import made_before
    from wmjax.rollout.album import Album, spread

    if not policy.predicts:
        return None
    try:
        if (made := made_before(policy.experiment)) is None:
            return None
        store, latents = made
        _require_same(policy, store, latents)
    except UserError as error:  # replaced since
        log.info("videos are without the nearest training frames: %s", error)
        return None
    frames = spread(len(store.frame_step), latents.spec.tokens_per_frame * latents.spec.dim)
    camera = store.spec.cameras.index(latents.spec.camera)
    return Album(store, frames, camera, policy.fit(np.asarray(latents.latents[0, frames], np.float32)))


def _require_same(policy: "Policy", store: "TrainingStore", latents: "LatentStore") -> None:
    """Refuses demonstrations or latents that are not of the kind that a policy was trained on."""
    from wmjax.specs import require_equal

    assert policy.encoder_spec is not None
    latents.check(store)
    require_equal(store.spec, policy.observation_spec, "the training data", "the checkpoint")
    require_equal(latents.spec, policy.encoder_spec, "the training data", "the checkpoint")


def _donors(policy: "Policy", data: Location | None) -> "Donors":
    """The demonstrations that a policy was trained on, with their latents.

    Raises:
        UserError: they are not in the cache and not given, or they are not the policy's.

    """
    from wmjax.data.donors import Donors
    from wmjax.data.observation import Prompt
    from wmjax.prepare import find_latents, find_store
    from wmjax.specs import to_dict

    experiment = policy.experiment
    assert policy.encoder_spec is not None
    store = find_store(experiment, data)
    latents = find_latents(experiment, store, to_dict(policy.encoder_spec))
    assert latents is not None
    _require_same(policy, store, latents)
    parts = [policy.prompt(task.instruction) for task in store.tasks]
    prompts = Prompt(*(np.concatenate(rows) for rows in zip(*parts, strict=True)))
    return Donors(store, latents, experiment.model.prophet.history, prompts)


def _evaluate_scripted(options: argparse.Namespace, protocol: Protocol, out: Path, shard: Shard) -> Summary:
    if options.policy == "replay":
        actor, header = _replay(options, protocol)
        episodes = actor.choose(protocol.suite, protocol.tasks, protocol.episodes_per_task)
        protocol = dataclasses.replace(protocol, max_steps=actor.longest)
        return evaluate(actor, protocol, out, options.workers, options.videos, header, episodes=episodes, shard=shard)
    scripted = (actors.Expert(), actors.Noop(), actors.Random(protocol.seed))
    chosen = next(actor for actor in scripted if actor.name == options.policy)
    return evaluate(chosen, protocol, out, options.workers, options.videos, shard=shard)


def identity(path: Path) -> dict[str, Any]:
    """A policy in an evaluation's header: its checkpoint and its recipe, and in words what it was trained on.

    Raises:
        UserError: no complete checkpoint there.

    """
    from wmjax.checkpoint import find
    from wmjax.config import RESUMABLE, dotted, from_dict

    manifest = json.loads((find(path) / "manifest.json").read_text())
    experiment = manifest["meta"]["experiment"]
    encoder = manifest["meta"]["specs"]["encoder"]  # with the hash of its weights
    names = {name: experiment[name] for name in ("recipe", "scale", "dataset")}
    # Only what a parameter depends on.
    settings = dotted(experiment).items()
    trained = {k: v for k, v in settings if k not in RESUMABLE and not k.startswith("evaluation.")}
    return {
        "checkpoint": {"step": manifest["step"], "hash": hash_json(manifest["sha256"])},
        "experiment": {**names, "seed": experiment["train"]["seed"]},
        "recipe_hash": hash_json([trained, encoder]),
        "training": _training(from_dict(experiment)),
    }


def _training(experiment: "Experiment") -> dict[str, Any]:
    """What names and hash of a recipe do not tell a reader: settings that are not in its files, and tasks."""
    from wmjax.config import RESUMABLE, changed_settings

    try:
        changed = changed_settings(experiment)
    except UserError as error:  # files that were renamed since
        log.info("what was changed in the recipe is not known: %s", error)
        changed = {}
    own = (*RESUMABLE, "train.seed")
    found = {"changed": {k: v for k, v in changed.items() if k not in own and not k.startswith("evaluation.")}}
    data = experiment.data
    return found if data.path else found | {"suite": data.suite, "tasks": list(data.tasks)}


def _replay(options: argparse.Namespace, protocol: Protocol) -> tuple[actors.Replay, dict[str, Any]]:
    """The actor of a training store, and what identifies it."""
    from wmjax.data.statistics import action_spec
    from wmjax.data.store import TrainingStore

    if options.data is None:
        raise UserError("--data is missing; --policy replay needs the training store to replay")
    store = TrainingStore(options.data)
    spec = action_spec(store, np.arange(len(store.episodes)), protocol.open_loop_horizon, "mean_std")  # as in training
    return actors.Replay(store, spec, watch=True), {"store": store.hash}


def protocol_folder(root: Path, protocol: Protocol, unchanged: Protocol) -> Path:
    """A folder that tells the protocol and what differs in it from the file's, so that two of them never collide."""
    parts = [protocol.name]
    for name, (field, _, _) in CHANGES.items():
        value = getattr(protocol, field)
        if value != getattr(unchanged, field):
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            parts.append(f"{'n' if name == 'episodes' else name.replace('-', '_')}{text}")
    return root / "-".join(parts)


if __name__ == "__main__":
    sys.exit(main())
