"""Compares two evaluations on the episodes they share: ``python -m wmjax.compare A B`` (two results folders)."""

import argparse
import sys
from pathlib import Path

from wmjax.commands import run_command
from wmjax.rollout.comparison import compare


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m wmjax.compare", description=__doc__)
    parser.add_argument("a", type=Path, help="results folder of the baseline")
    parser.add_argument("b", type=Path, help="results folder of the other run")
    options = parser.parse_args(arguments)

    def body() -> int:
        print(compare(options.a, options.b).table())
        return 0

    return run_command(body)


if __name__ == "__main__":
    sys.exit(main())
