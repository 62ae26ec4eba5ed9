"""Compares evaluations on the episodes that they share.

python -m wmjax.compare A B                          two results folders
python -m wmjax.compare BASELINE B C D ...           several with the first, one row each
python -m wmjax.compare --a A0 A1 A2 --b B0 B1 B2    two systems, one results folder per training seed
"""

import argparse
import sys
from pathlib import Path

from wmjax.analysis.comparison import compare
from wmjax.analysis.overview import overview
from wmjax.analysis.seeds import compare_seeds
from wmjax.core.command import run_command
from wmjax.core.errors import UserError


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m wmjax.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="*", help="results folders of the baseline and of other runs")
    parser.add_argument("--a", type=Path, nargs="+", default=[], help="the baseline's evaluations, one per seed")
    parser.add_argument("--b", type=Path, nargs="+", default=[], help="the other system's evaluations, one per seed")
    options = parser.parse_args(arguments)
    return run_command(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    if options.a and options.b and not options.folders:
        print(compare_seeds(options.a, options.b).table())
    elif len(options.folders) == 2 and not options.a and not options.b:
        print(compare(*options.folders).table())
    elif len(options.folders) > 2 and not options.a and not options.b:
        print(overview(options.folders[0], options.folders[1:]).table())
    else:
        raise UserError("give two results folders or more, or --a and --b with one folder per training seed each")
    return 0


if __name__ == "__main__":
    sys.exit(main())
