"""Evaluates a policy in closed loop in the simulator and reports its success rate.

python -m wmjax.evaluate --run RUN --protocol spatial_dev

Every field of the protocol can be given as ``--protocol.NAME VALUE``, such as ``--protocol.execution_delay 8``; the
shorter options below stand for the same fields. What differs from the protocol's file is recorded in ``header.json``.
On another machine, ``--encoder.model FOLDER`` and the like say where what the run was trained with lies now.
"""

import argparse
import sys
from pathlib import Path

from wmjax.core import logs
from wmjax.core.command import run_command, whole_number
from wmjax.core.errors import UserError
from wmjax.core.location import local, location
from wmjax.core.settings import parse_overrides, section
from wmjax.core.shards import parse_shard
from wmjax.pipeline.evaluate_checkpoint import evaluate_checkpoint
from wmjax.pipeline.evaluate_scripted import SCRIPTED, evaluate_scripted, replay_status
from wmjax.policy.places import take_places
from wmjax.policy.saved import find_policy
from wmjax.rollout.protocol import CHANGES, load_protocol, protocol_folder, protocol_names


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    logs.set_up()
    return run_command(lambda: _run(*_parser().parse_known_args(arguments)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m wmjax.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("--run", type=local, help="folder of a trained run or policy, or mini, which ships with wmjax")
    who.add_argument("--policy", choices=SCRIPTED, help="a scripted actor instead of a trained policy")
    parser.add_argument("--protocol", default="spatial_dev", help=f"{', '.join(protocol_names())}, or a .toml file")
    changes = parser.add_argument_group("what to change in the protocol, and to record in header.json")
    for name, change in CHANGES.items():
        changes.add_argument(f"--{name}", type=change.kind, help=change.help)
    parser.add_argument(
        "--shard",
        help="i/n: run the i-th of n parts of the episodes, into one --out that all n see; under srun or "
        "jax.distributed each process takes its own",
    )
    parser.add_argument("--workers", type=whole_number("workers", 1), default=2, help="simulator processes")
    parser.add_argument(
        "--batch", type=whole_number("batch", 1, 10_000), default=1, help="rows per policy call; 1 is fastest on a CPU"
    )
    parser.add_argument(
        "--videos", type=whole_number("videos", 0), default=2, help="successes and failures per task to keep as videos"
    )
    parser.add_argument("--out", type=local, help="results folder; default RUN/evaluations/STEP/PROTOCOL")
    parser.add_argument("--data", type=location, help="training store to replay, or of the run, for a shuffled memory")
    return parser


def _run(options: argparse.Namespace, settings: list[str]) -> int:
    changes = {change.field: getattr(options, name.replace("-", "_")) for name, change in CHANGES.items()}
    places, rest = take_places(parse_overrides(settings))
    changes |= section(rest, "protocol")
    protocol, unchanged = load_protocol(options.protocol, **changes), load_protocol(options.protocol)
    shared = {"workers": options.workers, "videos": options.videos, "data": options.data}
    shared["shard"] = parse_shard(options.shard)
    if options.run is None and places:
        raise UserError(f"settings of {', '.join(places)} are of a trained policy; leave them out with --policy")
    if options.run is None:
        out = options.out or protocol_folder(Path("runs") / options.policy, protocol, unchanged)
        summary = evaluate_scripted(options.policy, protocol, out, **shared)
    else:
        found = find_policy(options.run)  # once: a run that is still training saves others meanwhile
        out = options.out or protocol_folder(found.evaluations, protocol, unchanged)
        summary = evaluate_checkpoint(found.folder, protocol, out, batch_size=options.batch, places=places, **shared)
    print(summary.table())
    print(f"results: {out}")
    return replay_status(summary) if options.policy == "replay" else 0


if __name__ == "__main__":
    sys.exit(main())
