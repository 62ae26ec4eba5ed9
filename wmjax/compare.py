"""Compares evaluations on the episodes that they share.

python -m wmjax.compare A B                          two results folders
python -m wmjax.compare BASELINE B C D ...           several with the first, one row each
python -m wmjax.compare --a A0 A1 A2 --b B0 B1 B2    two systems, one results folder per training seed
python -m wmjax.compare A B --unpaired               evaluations of different episodes
python -m wmjax.compare RUN_A RUN_B --until decided  runs episodes of both policies until the difference is decided
"""

import argparse
import sys
from pathlib import Path

from wmjax.analysis.comparison import compare, compare_unpaired
from wmjax.analysis.overview import overview
from wmjax.analysis.seeds import compare_seeds
from wmjax.analysis.sequential import StoppingRule
from wmjax.core import logs
from wmjax.core.command import run_command
from wmjax.core.errors import UserError
from wmjax.core.settings import parse_overrides, section
from wmjax.pipeline.until_decided import compare_until_decided
from wmjax.rollout.protocol import load_protocol


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m wmjax.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="*", help="results folders of the baseline and of other runs")
    parser.add_argument("--a", type=Path, nargs="+", default=[], help="the baseline's evaluations, one per seed")
    parser.add_argument("--b", type=Path, nargs="+", default=[], help="the other system's evaluations, one per seed")
    parser.add_argument("--unpaired", action="store_true", help="the episodes differ, only the tasks are the same")
    parser.add_argument("--until", choices=("decided",), help="run episodes of both until the difference is decided")
    parser.add_argument("--protocol", default="spatial_final", help="whose episodes are run, at most all of them")
    for name, value, text in (("effect", 0.15, "difference"), ("alpha", 0.05, "false claim"), ("beta", 0.2, "miss")):
        parser.add_argument(f"--{name}", type=float, default=value, help=f"{text}, see StoppingRule (default {value})")
    return run_command(lambda: _run(*parser.parse_known_args(arguments)))


def _run(options: argparse.Namespace, settings: list[str]) -> int:
    two, systems = len(options.folders) == 2 and not options.a + options.b, options.a and options.b
    if options.until and (two or systems) and not (systems and options.folders):
        logs.set_up()
        a, b = ([options.folders[0]], [options.folders[1]]) if two else (options.a, options.b)
        protocol = load_protocol(options.protocol, **section(parse_overrides(settings), "protocol"))
        print(compare_until_decided(a, b, protocol, StoppingRule(options.effect, options.alpha, options.beta)).line())
    elif settings or options.until or (options.unpaired and not two):
        raise UserError(
            f"{' '.join(settings) or '--until or --unpaired'}: give two folders, or --a and --b with --until"
        )
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
