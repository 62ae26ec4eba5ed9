"""Compares evaluations on the episodes that they share.

python -m wmjax.compare A B                          two results folders
python -m wmjax.compare BASELINE B C D ...           several with the first, one row each
python -m wmjax.compare --a A0 A1 A2 --b B0 B1 B2    two systems, one results folder per training seed
python -m wmjax.compare A B --unpaired               evaluations of different episodes
python -m wmjax.compare RUN_A RUN_B --until decided  runs episodes of both policies until the difference is decided
"""

import sys
from collections.abc import Sequence

from wmjax.analysis.sequential import StoppingRule
from wmjax.core import logs
from wmjax.core.command import run_command
from wmjax.core.options import CommandParser
from wmjax.core.paths import expand
from wmjax.pipeline.compare import SHORTS, run_comparison


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = CommandParser("compare", __doc__)
    parser.add_argument("folders", type=expand, nargs="*", help="results folders of the baseline and of other runs")
    parser.add_argument("--a", type=expand, nargs="+", default=[], help="the baseline's evaluations, one per seed")
    parser.add_argument("--b", type=expand, nargs="+", default=[], help="the other system's evaluations, one per seed")
    parser.add_argument("--unpaired", action="store_true", help="the episodes differ, only the tasks are the same")
    parser.add_argument("--until", choices=("decided",), help="run episodes of both until the difference is decided")
    parser.add_argument("--protocol", default="spatial_final", help="the protocol whose episodes are run, at most all")
    parser.add_settings("rule", SHORTS, StoppingRule())
    parser.add_settings("protocol", {})

    def body() -> int:
        options, settings = parser.read(arguments)
        logs.set_up()
        print(run_comparison(settings, **vars(options)))
        return 0

    return run_command(body)


if __name__ == "__main__":
    sys.exit(main())
