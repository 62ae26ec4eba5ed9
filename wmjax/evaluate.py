"""Measures success in the simulator: ``python -m wmjax.evaluate --run RUN --protocol spatial_dev``."""

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from wmjax import logs
from wmjax.data.files import hash_json
from wmjax.errors import UserError
from wmjax.rollout import actors
from wmjax.rollout.evaluation import evaluate
from wmjax.rollout.protocol import Protocol, load_protocol, protocol_names

__all__ = ["evaluate", "main"]

SCRIPTED = ("replay", "expert", "noop", "random")


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    options = _parser().parse_args(arguments)
    logs.set_up()
    try:
        return _run(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where this one stopped", file=sys.stderr)
        return 130


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
    parser.add_argument("--out", type=Path, help="results folder; default RUN/evaluations/PROTOCOL")
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
    out = options.out or _default_folder(options, protocol, changes)
    actor, header, episodes = _actor(options, protocol)
    if options.policy == "replay":
        protocol = dataclasses.replace(protocol, max_steps=actor.longest)
    summary = evaluate(actor, protocol, out, options.workers, options.videos, header, episodes=episodes)
    print(summary.table())
    print(f"results: {out}")
    return 0


def _actor(options: argparse.Namespace, protocol: Protocol) -> tuple[Any, dict[str, Any], Any]:
    """The actor, what identifies it, and its episodes if they are not the protocol's."""
    if options.run is not None:
        if not options.run.is_dir():
            raise UserError(f"--run {str(options.run)!r} is not a folder; name the folder of a trained run")
        from wmjax.policy import load_policy
        from wmjax.rollout.policy_actor import PolicyActor

        policy = load_policy(options.run, batch_size=options.batch, open_loop_horizon=protocol.open_loop_horizon)
        return PolicyActor(policy, protocol.seed), {**identity(options.run), "batch_size": options.batch}, None
    if options.policy == "replay":
        return _replay(options, protocol)
    scripted = (actors.Expert(), actors.Noop(), actors.Random(protocol.seed))
    return next(actor for actor in scripted if actor.name == options.policy), {}, None


def identity(run: Path) -> dict[str, Any]:
    """What identifies the policy of a run in an evaluation's header: its newest checkpoint and its recipe.

    Raises:
        UserError: no complete checkpoint there.

    """
    from wmjax import checkpoint

    folder = run if (run / "manifest.json").is_file() else checkpoint.latest(run / "checkpoints")
    manifest = json.loads((folder / "manifest.json").read_text())
    experiment = manifest["meta"]["experiment"]
    names = {name: experiment[name] for name in ("recipe", "scale", "dataset")}
    return {
        "checkpoint": {"step": manifest["step"], "hash": hash_json(manifest["sha256"])},
        "experiment": {**names, "seed": experiment["train"]["seed"]},
        "recipe_hash": hash_json(experiment),
    }


def _replay(options: argparse.Namespace, protocol: Protocol) -> tuple[Any, dict[str, Any], Any]:
    """Recorded episodes of the protocol's suite and tasks, at most ``episodes_per_task`` of each."""
    from wmjax.data.statistics import action_spec
    from wmjax.data.store import TrainingStore

    if options.data is None:
        raise UserError("--data is missing; --policy replay needs the training store to replay")
    store = TrainingStore(options.data)
    spec = action_spec(store, np.arange(len(store.episodes)), protocol.open_loop_horizon, "quantile")
    actor = actors.Replay(store, spec)
    episodes = actor.choose(protocol.suite, protocol.tasks, protocol.episodes_per_task)
    return actor, {"store": store.hash}, episodes


def _default_folder(options: argparse.Namespace, protocol: Protocol, changes: dict[str, Any]) -> Path:
    """A folder that tells the protocol and what was changed in it."""
    short = {"tasks": "tasks", "episodes_per_task": "n", "open_loop_horizon": "horizon"}
    parts = [protocol.name]
    for name, value in changes.items():
        if value is not None:
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            parts.append(f"{short.get(name, name)}{text}")
    root = options.run / "evaluations" if options.run is not None else Path("runs") / options.policy
    return root / "-".join(parts)


if __name__ == "__main__":
    sys.exit(main())
