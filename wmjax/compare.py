"""Compares evaluations on the episodes that they share.

python -m wmjax.compare A B                          two results folders
python -m wmjax.compare BASELINE B C D ...           several with the first, one row each
python -m wmjax.compare --a A0 A1 A2 --b B0 B1 B2    two systems, one results folder per training seed
python -m wmjax.compare A B --unpaired               evaluations of different episodes
python -m wmjax.compare RUN_A RUN_B --until decided  runs episodes of both policies until the difference is decided
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wmjax.analysis.comparison import compare, compare_unpaired
from wmjax.analysis.overview import overview
from wmjax.analysis.seeds import compare_seeds
from wmjax.analysis.sequential import StoppingRule
from wmjax.core import logs
from wmjax.core.command import run_command
from wmjax.core.errors import UserError
from wmjax.core.options import CommandParser, Short
from wmjax.core.settings import build
from wmjax.pipeline.until_decided import compare_until_decided
from wmjax.rollout.protocol import load_protocol

RULE = {"effect": "difference to find", "alpha": "risk of a false claim", "beta": "risk of missing the effect"}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = CommandParser("compare", __doc__)
    parser.add_argument("folders", type=Path, nargs="*", help="results folders of the baseline and of other runs")
    parser.add_argument("--a", type=Path, nargs="+", default=[], help="the baseline's evaluations, one per seed")
    parser.add_argument("--b", type=Path, nargs="+", default=[], help="the other system's evaluations, one per seed")
    parser.add_argument("--unpaired", action="store_true", help="the episodes differ, only the tasks are the same")
    parser.add_argument("--until", choices=("decided",), help="run episodes of both until the difference is decided")
    parser.add_argument("--protocol", default="spatial_final", help="whose episodes are run, at most all of them")
    parser.add_settings("rule", {name: Short(name, text) for name, text in RULE.items()}, StoppingRule())
    parser.add_settings("protocol", {})
    return run_command(lambda: _run(*parser.read(arguments)))


def _run(options: argparse.Namespace, settings: dict[str, Any]) -> int:
    two, systems = len(options.folders) == 2 and not options.a + options.b, options.a and options.b
    given = [f"--{section}.{name}" for section, values in settings.items() for name in values]
    if options.until and (two or systems) and not (systems and options.folders):
        logs.set_up()
        a, b = ([options.folders[0]], [options.folders[1]]) if two else (options.a, options.b)
        protocol = load_protocol(options.protocol, **settings["protocol"])
        print(compare_until_decided(a, b, protocol, build(StoppingRule, settings["rule"], "rule.")).line())
    elif given or options.until or (options.unpaired and not two):
        raise UserError(f"{' '.join(given) or '--until or --unpaired'}: give two folders, or --a and --b with --until")
    elif systems and not options.folders:
        print(compare_seeds(options.a, options.b).table())
    elif two:
        print(compare_unpaired(*options.folders) if options.unpaired else compare(*options.folders).table())
    elif len(options.folders) > 2 and not options.a + options.b:
        print(overview(options.folders[0], options.folders[1:]).table())
    else:
        raise UserError("give two results folders or more, or --a and --b with one folder per training seed each")
    return 0


if __name__ == "__main__":
    sys.exit(main())
