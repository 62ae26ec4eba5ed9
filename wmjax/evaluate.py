"""Measures success in the simulator: ``python -m wmjax.evaluate --run RUN --protocol spatial_dev``."""

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from wmjax import logs
from wmjax.commands import run_command
from wmjax.data.files import hash_json
from wmjax.errors import UserError
from wmjax.resources import records_folder
from wmjax.rollout import actors
from wmjax.rollout.evaluation import evaluate
from wmjax.rollout.protocol import Protocol, load_protocol, protocol_names
from wmjax.rollout.results import Summary

__all__ = ["evaluate", "evaluate_checkpoint", "main"]

SCRIPTED = ("replay", "expert", "noop", "random")


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    options = _parser().parse_args(arguments)
    logs.set_up()
    return run_command(lambda: _run(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m wmjax.evaluate", description=__doc__)
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("--run", type=Path, help="folder of a trained run")
    who.add_argument("--policy", choices=SCRIPTED, help="a scripted actor instead of a trained policy")
    parser.add_argument("--protocol", default="spatial_dev", help=f"{', '.join(protocol_names())}, or a .toml file")
    parser.add_argument("--tasks", type=_integers, help="task ids, such as 0,1")
    parser.add_argument("--episodes", type=int, help="episodes per task")
    parser.add_argument("--horizon", type=int, help="open-loop horizon, control steps")
    parser.add_argument("--delay", type=int, help="execution delay, control steps")
    parser.add_argument("--max-steps", type=int, help="step limit, control steps")
    parser.add_argument("--seed", type=int, help="seed of the policy's noise")
    parser.add_argument("--workers", type=int, default=2, help="simulator processes")
    parser.add_argument("--batch", type=int, default=1, help="rows per policy call; 1 is fastest on a CPU")
    parser.add_argument("--videos", type=int, default=2, help="successes and failures per task to keep as videos")
    parser.add_argument("--out", type=Path, help="results folder; default RUN/evaluations/STEP/PROTOCOL")
    parser.add_argument("--data", type=Path, help="training store to replay")
    return parser


def _integers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers such as 0,1") from None


def _run(options: argparse.Namespace) -> int:
    changes = {
        "tasks": options.tasks,
        "episodes_per_task": options.episodes,
        "open_loop_horizon": options.horizon,
        "execution_delay": options.delay,
        "max_steps": options.max_steps,
        "seed": options.seed,
    }
    protocol = load_protocol(options.protocol, **changes)
    if options.run is not None:
        out = options.out or _folder(evaluations_folder(options.run), protocol, changes)
        summary = evaluate_checkpoint(
            options.run, protocol, out, workers=options.workers, videos=options.videos, batch_size=options.batch
        )
    else:
        out = options.out or _folder(Path("runs") / options.policy, protocol, changes)
        summary = _evaluate_scripted(options, protocol, out)
    print(summary.table())
    print(f"results: {out}")
    return 0


def evaluate_checkpoint(
    path: Path, protocol: Protocol, out: Path, *, workers: int = 2, videos: int = 2, batch_size: int = 1
) -> Summary:
    """Evaluates a run's newest checkpoint, or one checkpoint's folder.

    Raises:
        UserError: no complete checkpoint there, or see :func:`wmjax.rollout.evaluation.evaluate`.

    """
    from wmjax.cache import keep_compiled_programs
    from wmjax.policy import load_policy
    from wmjax.rollout.policy_actor import PolicyActor

    keep_compiled_programs()

    header = {**identity(path), "batch_size": batch_size}
    policy = load_policy(path, batch_size=batch_size, open_loop_horizon=protocol.open_loop_horizon)
    actor = PolicyActor(policy, protocol.seed)
    return evaluate(actor, protocol, out, workers, videos, header, records=records_folder())


def _evaluate_scripted(options: argparse.Namespace, protocol: Protocol, out: Path) -> Summary:
    if options.policy == "replay":
        actor, header = _replay(options, protocol)
        episodes = actor.choose(protocol.suite, protocol.tasks, protocol.episodes_per_task)
        protocol = dataclasses.replace(protocol, max_steps=actor.longest)
        return evaluate(actor, protocol, out, options.workers, options.videos, header, episodes=episodes)
    scripted = (actors.Expert(), actors.Noop(), actors.Random(protocol.seed))
    chosen = next(actor for actor in scripted if actor.name == options.policy)
    return evaluate(chosen, protocol, out, options.workers, options.videos)


def _checkpoint_folder(path: Path) -> Path:
    """The newest checkpoint of a run, or ``path`` itself if it is a checkpoint."""
    from wmjax.checkpoint import latest

    if not path.is_dir():
        raise UserError(f"--run {str(path)!r} is not a folder; name the folder of a trained run")
    return path if (path / "manifest.json").is_file() else latest(path / "checkpoints")


def evaluations_folder(path: Path) -> Path:
    """Where evaluations of a checkpoint go: ``RUN/evaluations/STEP``."""
    folder = _checkpoint_folder(path)
    return folder.parent.parent / "evaluations" / folder.name


def identity(path: Path) -> dict[str, Any]:
    """What identifies a policy in an evaluation's header: its checkpoint and its recipe.

    Raises:
        UserError: no complete checkpoint there.

    """
    manifest = json.loads((_checkpoint_folder(path) / "manifest.json").read_text())
    experiment = manifest["meta"]["experiment"]
    names = {name: experiment[name] for name in ("recipe", "scale", "dataset")}
    return {
        "checkpoint": {"step": manifest["step"], "hash": hash_json(manifest["sha256"])},
        "experiment": {**names, "seed": experiment["train"]["seed"]},
        "recipe_hash": hash_json(experiment),
    }


def _replay(options: argparse.Namespace, protocol: Protocol) -> tuple[actors.Replay, dict[str, Any]]:
    """The actor of a training store, and what identifies it."""
    from wmjax.data.statistics import action_spec
    from wmjax.data.store import TrainingStore

    if options.data is None:
        raise UserError("--data is missing; --policy replay needs the training store to replay")
    store = TrainingStore(options.data)
    spec = action_spec(store, np.arange(len(store.episodes)), protocol.open_loop_horizon, "quantile")
    return actors.Replay(store, spec), {"store": store.hash}


def _folder(root: Path, protocol: Protocol, changes: dict[str, Any]) -> Path:
    """A folder that tells the protocol and what was changed in it."""
    short = {"episodes_per_task": "n", "open_loop_horizon": "horizon", "execution_delay": "delay"}
    parts = [protocol.name]
    for name, value in changes.items():
        if value is not None:
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            parts.append(f"{short.get(name, name)}{text}")
    return root / "-".join(parts)


if __name__ == "__main__":
    sys.exit(main())
