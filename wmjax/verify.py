"""Checks the published results against the committed evidence, and replays some of its episodes.

python -m wmjax.verify                        hashes, the tables in README and docs, 20 replayed episodes per evaluation
python -m wmjax.verify --replays 0            without the simulator
python -m wmjax.verify --write                write the tables in README and docs anew
python -m wmjax.verify --add RESULTS --name NAME   make evidence of a finished evaluation

Evidence lies in ``eval/evidence``: each folder holds the outcomes of an evaluation, and the actions of 20 of its
episodes, chosen by the hash of their names. A replay on the recording's kind of processor ends in the same bits,
elsewhere in the same success at the same step and a state within 1e-6. The exit status is 1 if anything differs.
"""

import sys
from collections.abc import Sequence

from wmjax.core import logs
from wmjax.core.command import run_command, whole_number
from wmjax.core.options import CommandParser
from wmjax.core.paths import expand
from wmjax.pipeline.verify import run_verification


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = CommandParser("verify", __doc__)
    replays = whole_number("replays", 0)
    parser.add_argument("--replays", type=replays, help="episodes of each evaluation to replay; default all recorded")
    parser.add_argument("--write", action="store_true", help="regenerate the tables in README and docs")
    parser.add_argument("--add", type=expand, metavar="RESULTS", help="results folder to make evidence of")
    parser.add_argument("--name", help="name of the evidence, with --add")

    def body() -> int:
        options = parser.read(arguments)[0]
        logs.set_up()
        return run_verification(**vars(options))

    return run_command(body)


if __name__ == "__main__":
    sys.exit(main())
