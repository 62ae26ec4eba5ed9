"""Runs a plan of trainings and evaluations, and makes tables of the finished ones.

python -m wmjax.sweep PLAN.toml              what is left of the plan, cell by cell; run it again to resume
python -m wmjax.sweep PLAN.toml --dry-run    what is left, with the stated minutes
python -m wmjax.sweep PLAN.toml --tables     tables.md and success.svg anew from the JSON files of finished cells
"""

import sys
from collections.abc import Sequence

from wmjax.core import logs
from wmjax.core.command import number, run_command
from wmjax.core.options import CommandParser
from wmjax.core.paths import expand
from wmjax.pipeline.sweep import sweep, tables


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = CommandParser("sweep", __doc__)
    parser.add_argument("plan", type=expand, help="a TOML file, see docs/experiments.md")
    minutes = number("minutes", 0)
    parser.add_argument("--minutes", type=minutes, help="begin only cells whose stated minutes fit into this limit")
    parser.add_argument("--dry-run", action="store_true", help="print what would run, and for how long")
    parser.add_argument("--tables", action="store_true", help="run nothing; regenerate the tables and the figure")

    def body() -> int:
        options, _ = parser.read(arguments)
        logs.set_up()
        if options.tables:
            tables(options.plan)
            return 0
        return sweep(options.plan, minutes=options.minutes, dry_run=options.dry_run)

    return run_command(body)


if __name__ == "__main__":
    sys.exit(main())
