"""Diagnoses a checkpoint without a simulator, each number beside that of a trivial predictor.

python -m wmjax.diagnose --run RUN                      the run's validation split
python -m wmjax.diagnose --run RUN --split train        its training split: what the policy has memorised
python -m wmjax.diagnose --run RUN --held-out STORE     the Prophet on other demonstrations, such as undisturbed ones

The averaged parameters are scored on the run's own split by episode and task. The command records no demonstrations:
name their store with --data if the cache does not have it. A PNG beside the JSON file shows the Prophet's predictions:
the colours of predicted and true latents, and the training frames that are nearest to the predicted ones.
On another machine, ``--encoder.model FOLDER`` and the like say where what the run was trained with lies now.
"""

import sys
from collections.abc import Sequence

from wmjax.core import logs
from wmjax.core.command import run_command, whole_number
from wmjax.core.location import local, location
from wmjax.core.options import CommandParser
from wmjax.pipeline.diagnose import BATCHES, diagnose_checkpoint
from wmjax.policy.places import GROUPS, read_places


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = CommandParser("diagnose", __doc__)
    parser.add_argument("--run", type=location, required=True, help="folder or URL of a run, or one of its checkpoints")
    parser.add_argument("--split", choices=("val", "train"), default="val", help="the scored episodes")
    count = whole_number("batches", 1)
    parser.add_argument("--batches", type=count, default=BATCHES, help=f"at most N of 32 samples (default: {BATCHES})")
    parser.add_argument("--data", type=location, help="the training store of the run, if it is not in the cache")
    parser.add_argument("--held-out", type=location, help="a training store, on which the Prophet alone is scored")
    where = "the JSON file (default: RUN/diagnostics/STEP-SPLIT.json); the PNG is written beside it"
    parser.add_argument("--out", type=local, help=where)
    for group in GROUPS:
        parser.add_settings(group, {})

    def body() -> int:
        options, settings = parser.read(arguments)
        logs.set_up()
        diagnose_checkpoint(
            options.run,
            split=options.split,
            batches=options.batches,
            data=options.data,
            held_out=options.held_out,
            out=options.out,
            places=read_places(settings),
        )
        return 0

    return run_command(body)


if __name__ == "__main__":
    sys.exit(main())
