"""What training at 3B needs on accelerators that are not here: tables of docs/scaling.md, compiled for each of them.

    python -m benchmarks.topologies --list
    python -m benchmarks.topologies [--only h100:8]     # compiles, minutes each; ./setup.sh estimate has the compilers
    python -m benchmarks.topologies --table             # the tables, from what was measured before

The results are in ``benchmarks/results/topologies.json``. The exit status is 1 if a program needs more memory than its
row allows.
"""

import argparse
import json
import math
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).parent / "results" / "topologies.json"
COMMON = ("--config", "e2_flow", "--scale", "3b")
FULL = "--model.backbone.remat full"
NAMES = "--model.backbone.remat names"
FEATURES = f"{NAMES} --train.cached_vision bfloat16 --train.same_shift true"


class Row(NamedTuple):
    """A training on a topology: options of ``wmjax.estimate``, and the most memory (10^9 bytes) that it may need."""

    options: str
    most: float | None = None


ROWS = (
    Row(f"--topology h200:1 --batch 64 {FULL}"),
    Row(f"--topology h200:1 --batch 64 {NAMES}"),
    Row(f"--topology h200:1 --batch 64 {FEATURES}"),
    Row(f"--topology h100:8 --batch 256 {FULL}", 16.0),
    Row(f"--topology h100:8 --batch 256 {NAMES}"),
    Row(f"--topology h100:8 --batch 256 {FEATURES}"),
    Row(f"--topology a100:8 --batch 256 {FULL}"),
    Row(f"--topology b200:8 --batch 256 {FULL}"),
    Row(f"--topology rtx4090:1 --batch 8 {FULL}"),
    Row(f"--topology v5e:4x4 --batch 128 {FULL}", 11.0),
    Row(f"--topology v5e:4x4 --batch 128 {NAMES}"),
    Row(f"--topology v5e:4x4 --batch 128 {FEATURES}"),
    Row(f"--topology v5p:2x2x1 --batch 64 {FULL}"),
    Row(f"--topology v6e:2x4 --batch 64 {FULL}"),
)

GROWING = (
    Row(f"--topology h100:1 --batch 32 {NAMES}"),
    Row(f"--topology h100:8 --batch 256 {NAMES}"),
    Row(f"--topology h100:8x8 --batch 2048 {NAMES}"),
    Row(f"--topology h100:64x8 --batch 16384 {NAMES}"),
    Row(f"--topology v5e:4x4 --batch 128 {NAMES}"),
    Row(f"--topology v5e:16x16 --batch 2048 {NAMES}"),
)
"""The same training on more and more devices, with as many samples on each: the table of 1 to 512 devices."""
EVERY = tuple(dict.fromkeys((*ROWS, *GROWING)))


def measure(row: Row) -> dict[str, Any]:
    """The estimate of a row, with the commit.

    Raises:
        CalledProcessError: there is none, as without the compiler; the command has said why.

    """
    command = [sys.executable, "-m", "wmjax.estimate", *COMMON, *shlex.split(row.options), "--json"]
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if process.returncode not in (0, 1):  # 1: it does not fit
        process.check_returncode()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], stdout=subprocess.PIPE, text=True, check=True)
    return {"commit": commit.stdout.strip(), **json.loads(process.stdout)}


def table(results: dict[str, dict[str, Any]]) -> str:
    """A row of Markdown for each result, in the order of :data:`ROWS`."""
    lines = [
        "| options | commit | memory of a device | all-reduce per step | step by roofline | samples/s at 75 % |",
        "|---|---|---|---|---|---|",
    ]
    for row in ROWS:
        if (found := results.get(row.options)) is None:
            continue
        start = f"| `{row.options}` | `{found['commit']}` "
        if found["memory"] is None:
            lines.append(f"{start}| does not fit | | | |")
            continue
        memory, time, sums = found["memory"], found["time"], found["collectives"].get("all-reduce", {"mb": 0.0})
        lines.append(
            f"{start}| {memory['needed_gb']:.1f} of {memory['available_gb']:.1f} GB "
            f"| {sums['mb']:.0f} MB | {1e3 * time['roofline_s']:.0f} ms "
            f"| {time['samples_per_s']:,.0f}, MFU {100 * time['mfu']:.0f} % |"
        )
    return "\n".join(lines)


def growth(results: dict[str, dict[str, Any]]) -> str:
    """A row of Markdown for each result of :data:`GROWING`: what a device needs, and what it exchanges with others."""
    lines = [
        "| topology | commit | devices | batch | memory of a device | exchanged per step | samples/s at 75 % |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in GROWING:
        if (found := results.get(row.options)) is None:
            continue
        kinds = [f"{kind} {one['mb']:.0f} MB" for kind, one in found["collectives"].items()]
        lines.append(
            f"| `{found['topology']}` | `{found['commit']}` | {found['devices']} | {found['batch']:,} "
            f"| {found['memory']['needed_gb']:.1f} of {found['memory']['available_gb']:.1f} GB "
            f"| {', '.join(kinds) or 'nothing'} | {found['time']['samples_per_s']:,.0f} |"
        )
    return "\n".join(lines)


def broken(results: dict[str, dict[str, Any]]) -> list[str]:
    """The rows that need more memory than they may, in words."""
    found = []
    for options, most in ROWS:
        if most is None or options not in results:
            continue
        memory = results[options]["memory"]
        size = math.inf if memory is None else memory["needed_gb"]
        if size > most:
            found.append(f"{options}: {size:.2f} GB, at most {most:g}")
    return found


def main() -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print the rows")
    parser.add_argument("--table", action="store_true", help="print the tables of what was measured")
    parser.add_argument("--only", default="", help="a part of the options of the rows to compile")
    options = parser.parse_args()
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for row in () if options.table else EVERY:
        if options.only not in row.options:
            continue
        print(row.options, flush=True)
        if not options.list:
            results[row.options] = measure(row)
            RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if not options.list:
        print(table(results), "", growth(results), *broken(results), sep="\n")
    return 1 if broken(results) else 0


if __name__ == "__main__":
    sys.exit(main())
