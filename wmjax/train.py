"""Trains one recipe, from recording demonstrations to closed-loop evaluation.

python -m wmjax.train --config e2_flow

Every stage is cached and resumes where it was interrupted. Every setting can be given as ``--section.name VALUE``.
With several processes (:mod:`wmjax.core.distributed`) the first one records, encodes and evaluates while the others
wait; all of them train.
"""

import sys
from collections.abc import Sequence

from wmjax.core import distributed
from wmjax.core.command import run_command, use_huge_pages
from wmjax.core.location import location
from wmjax.core.options import CommandParser, Short
from wmjax.experiment.config import SECTIONS
from wmjax.pipeline.train import dry_run, run
from wmjax.trainer.config import TrainConfig
from wmjax.trainer.trackers import tracker_names


def parser() -> CommandParser:
    """The command's options."""
    parser = CommandParser("train", __doc__)
    parser.add_argument("--config", default="e2_flow", help="a variant and a head of train/ (default: e2_flow)")
    parser.add_argument("--scale", default="mini", help="a file of train/scales, such as mini_lora (default: mini)")
    parser.add_argument("--dataset", help="a file of train/data (default: the scale's)")
    parser.add_argument("--run", type=location, help="the run's folder, or URL (default: <cache>/runs/<name>)")
    parser.add_argument("--dry-run", action="store_true", help="print what would be run; read no data and no weights")
    parser.add_argument("--no-evaluation", action="store_true", help="stop after training")
    trackers = Short("trackers", "tensorboard, wandb, trackio beside metrics.jsonl (a,b)", tracker_names)
    parser.add_settings("train", {"tracker": trackers}, TrainConfig)
    parser.add_sections(SECTIONS)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; bad input is one line and exit status 2."""

    def body() -> int:
        options, settings = parser().read(arguments)
        chosen = options.config, options.scale, options.dataset, settings
        command = dry_run if options.dry_run else run
        command(*chosen, folder=options.run, evaluates=not options.no_evaluation)
        return 0

    return distributed.together(lambda: run_command(body))


if __name__ == "__main__":
    use_huge_pages("wmjax.train")
    sys.exit(main())
