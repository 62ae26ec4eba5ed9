"""Checks new hardware with everything that a training and an evaluation do, and measures it.

python -m wmjax.firstlight --scale 3b [--weights FOLDER] [--json FILE]

Each check prints a line with pass, fail or skip and its figures; none stops the others. Weights that are not given are
noise, made on the device; nothing is downloaded. Every setting can be given as ``--section.name VALUE``.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from wmjax.core.command import run_command, whole_number
from wmjax.core.files import write_json
from wmjax.core.location import local
from wmjax.core.options import CommandParser
from wmjax.core.provenance import provenance
from wmjax.experiment.config import SECTIONS
from wmjax.scaling.firstlight import supervise
from wmjax.scaling.firstlight.request import NAMES, Request, chosen


def parser() -> CommandParser:
    """The command line."""
    parser = CommandParser("firstlight", __doc__)
    parser.add_argument("--config", default="e2_flow", help="a variant and a head of train/ (default: e2_flow)")
    parser.add_argument("--scale", default="3b", help="a file of train/scales (default: 3b)")
    parser.add_argument("--weights", type=local, help="folder of the backbone's published weights and tokenizer")
    parser.add_argument("--json", type=local, help="file to write the findings to")
    parser.add_argument("--only", nargs="+", default=(), metavar="CHECK", help=f"some checks of {', '.join(NAMES)}")
    parser.add_argument("--skip", nargs="+", default=(), metavar="CHECK", help="leave these checks out")
    parser.add_argument("--minutes", type=whole_number("minutes", 1), default=30, help="per check (default: 30)")
    parser.add_sections(SECTIONS)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; 1 if a check failed."""

    def body() -> int:
        options, settings = parser().read(arguments)
        weights = None if options.weights is None else str(options.weights.resolve())
        given = {section: values for section, values in settings.items() if values}
        request = Request(options.config, options.scale, given, weights, chosen(options.only, options.skip))
        with tempfile.TemporaryDirectory(prefix="wmjax-firstlight-") as scratch:
            found = supervise.run(request, Path(scratch), 60 * options.minutes, lambda line: print(line, flush=True))
        if options.json is not None:
            write_json(options.json, {**provenance(), "scale": options.scale, "recipe": options.config, **found})
        count = [row["status"] for row in found["checks"]].count
        print(f"{count('pass')} passed, {count('fail')} failed, {count('skip')} skipped")
        return int(count("fail") > 0)

    return run_command(body)


if __name__ == "__main__":
    sys.exit(main())
