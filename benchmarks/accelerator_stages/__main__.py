"""Runs one stage in this process: ``python -m benchmarks.accelerator_stages NAME``, as ``accelerator.py`` calls it."""

import argparse
import importlib
from pathlib import Path

from benchmarks.accelerator import STAGES, Results
from benchmarks.accelerator_stages.session import Session


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--started", type=float, required=True, help="seconds since the epoch")
    parser.add_argument("--deadline", type=float, required=True, help="seconds since the epoch")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    results = Results(options.out, options.started, options.tiny)
    session = Session(options.stage, results, options.scratch, options.deadline)
    importlib.import_module(f"benchmarks.accelerator_stages.{options.stage}").run(session)


if __name__ == "__main__":
    main()
