"""Writes an evaluation's results as one HTML file.

python -m wmjax.report EVALUATION [--compare CONTROL ...]
"""

import sys

from wmjax.core.command import run_command
from wmjax.core.location import local
from wmjax.core.options import CommandParser
from wmjax.core.paths import expand
from wmjax.reporting.evaluation_page import write_report


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = CommandParser("report", __doc__)
    parser.add_argument("evaluation", type=expand, help="results folder, such as RUN/evaluations/STEP/PROTOCOL")
    parser.add_argument("--out", type=local, help="the HTML file; default: report.html in the results folder")
    parser.add_argument(
        "--compare",
        type=expand,
        nargs="+",
        action="extend",
        default=[],
        metavar="EVALUATION",
        help="results folders of controls, compared in pairs on the same episodes",
    )

    def body() -> int:
        options, _ = parser.read(arguments)
        print(f"report: {write_report(options.evaluation, options.out, options.compare)}")
        return 0

    return run_command(body)


if __name__ == "__main__":
    sys.exit(main())
