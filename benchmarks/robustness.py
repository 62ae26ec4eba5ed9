"""Damages files in thousands of ways and gives every setting values that cannot work; nothing may end in a traceback.

python -m benchmarks.robustness files --count 10000 [--first 0] [--seconds 480] --out files.json
python -m benchmarks.robustness settings [--seconds 480] --out settings.json
python -m benchmarks.robustness options --out options.json
python -m benchmarks.robustness table files.json settings.json options.json

``files`` takes whole inputs of every kind (:mod:`benchmarks.robustness_files`), damages one file of one of them
(:mod:`benchmarks.mutations`) and reads it as a command does. It must be refused in one line, or read; where hashes
protect the content, what is read must be that of the whole input. ``settings`` gives each setting of an experiment and
of a protocol a negative number, zero, NaN, infinity, huge numbers and a text. It must be refused in one line that
names the setting, or a training step with it must give a finite loss. ``options`` does the same to the options of the
commands. Everything else is a fault and is printed; the exit status is then 1. ``--seconds`` ends a sweep early; the
next one continues at ``--first``. Run it in the repository, in pieces if necessary; ``table`` adds the pieces up.
"""

import argparse
import contextlib
import dataclasses
import importlib
import io
import json
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from wmjax.core.errors import UserError
from wmjax.core.settings import parse_overrides
from wmjax.experiment.config import from_dict, load, to_dict
from wmjax.rollout.protocol import load_protocol

LIMIT = 1500
"""Characters of a line that is still one."""
HANG = 600
"""Seconds after which a reader or a step, with its compilation on a loaded machine, counts as hung."""
VALUES = {
    "negative": ("-1", "-0.5"),
    "zero": ("0", "0.0"),
    "NaN": ("nan",),
    "infinite": ("inf", "-inf"),
    "huge": ("1e300", "100000000000000000000"),
    "text": ("x", ""),
}
"""What every setting is given, as on a command line."""


@dataclasses.dataclass
class Tally:
    """The outcomes of a sweep: how often each, by row of the table, and all faults."""

    sweep: str
    counts: dict[str, Counter[str]] = dataclasses.field(default_factory=dict)
    faults: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    following: int = 0

    def add(self, row: str, outcome: str, **what: Any) -> None:
        """Counts an outcome, and prints it if it is a fault."""
        self.counts.setdefault(row, Counter())[outcome] += 1
        if outcome == "fault":
            self.faults.append({"row": row, **what})
            print(json.dumps(self.faults[-1]), flush=True)

    def write(self, path: Path | None) -> None:
        """Writes the sweep as JSON."""
        if path is not None:  # not asdict, which counts a counter's items
            path.write_text(json.dumps(vars(self), indent=1) + "\n", encoding="utf-8")


class HungError(Exception):
    """A reader took longer than :data:`HANG`."""


@contextlib.contextmanager
def in_time(seconds: int = HANG) -> Iterator[None]:
    """Interrupts a block that hangs."""

    def ring(*_: object) -> None:
        raise HungError(f"no end after {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome_of(call: Callable[[], Any]) -> tuple[str, Any]:
    """``read`` with what was read, ``refused`` with the line, or ``fault`` with what is wrong."""
    try:
        with in_time():
            return "read", call()
    except UserError as error:
        text = str(error)
        return ("refused", text) if "\n" not in text and len(text) <= LIMIT else ("fault", f"no line: {text[:300]!r}")
    except OSError as error:  # which commands print as one line if it names a place
        return ("refused", str(error)) if error.filename is not None else ("fault", repr(error)[:300])
    except Exception as error:  # what would be a traceback
        import traceback

        last = traceback.extract_tb(error.__traceback__)[-1]
        return "fault", f"{type(error).__name__}: {str(error)[:200]} at {last.filename}:{last.lineno}"


def sweep_files(options: argparse.Namespace) -> Tally:
    """Damages files, one after the other; the same ones for the same ``--first``."""
    from benchmarks.mutations import mutate
    from benchmarks.robustness_files import FAMILIES

    tally, began = Tally("files", following=options.first), time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        whole, understood = {}, {}
        names = [name for name in FAMILIES if options.only in name]
        for number, name in enumerate(names):
            whole[name] = root / "whole" / str(number)
            whole[name].parent.mkdir(exist_ok=True)
            FAMILIES[name].build(whole[name])
            understood[name] = _read(FAMILIES[name], whole[name], root, lenient=False)
            if understood[name][0] != "read":
                raise SystemExit(f"the whole input {name!r} is not read: {understood[name][1]}")
        for number in range(options.first, options.first + options.count):
            if time.monotonic() - began > options.seconds:
                break
            draw = random.Random(f"{options.seed}/{number}")
            name = draw.choices(names, [FAMILIES[each].weight for each in names])[0]
            copy = root / "copy"
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(whole[name], copy)
            files = sorted(path for path in copy.rglob("*") if path.is_file())
            path = draw.choice(files)
            try:
                damage = mutate(draw, path, [other for other in files if other != path])
            except Exception:  # the content is not what its ending says, as JSON in a binary file
                path.write_bytes(b"")
                damage = "emptied"
            lenient = draw.random() < 0.5
            outcome, found = _read(FAMILIES[name], copy, root, lenient=lenient)
            if outcome == "read" and FAMILIES[name].hashed and found != understood[name][1]:
                outcome, found = "fault", "something else was read in silence"
            where = path.relative_to(copy).as_posix()
            tally.add(name, outcome, number=number, file=where, damage=damage, lenient=lenient, found=found)
            tally.following = number + 1
    return tally


def _read(family: Any, folder: Path, root: Path, *, lenient: bool) -> tuple[str, Any]:
    """Reads a copy, with an empty folder beside it."""
    scratch = root / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    copy = root / "read"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    return outcome_of(lambda: family.read(copy, scratch, lenient))


def leaves(settings: Any, path: str = "") -> list[str]:
    """The dotted names of all settings of a dataclass of dataclasses, those of the chosen kinds among them."""
    found: list[str] = []
    for field in dataclasses.fields(settings):
        value, name = getattr(settings, field.name), f"{path}{field.name}"
        found += leaves(value, f"{name}.") if dataclasses.is_dataclass(value) else [name]
    return found


def sweep_settings(options: argparse.Namespace) -> Tally:
    """Gives every setting every value; what is built is trained for a step."""
    # Most of the time is compilation, and each setting is a separate program.
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0".strip()
    from benchmarks.robustness_step import Stepper

    tally, began = Tally("settings", following=options.first), time.monotonic()
    names = [*leaves(load("e2_flow", "smoke")), *leaves(load_protocol("spatial_dev"), "protocol.")]
    names = [name for name in names if name not in CHOSEN]
    cases = [(name, kind, text) for name in sorted(names) for kind, texts in VALUES.items() for text in texts]
    with tempfile.TemporaryDirectory() as place:
        stepper = Stepper(Path(place))
        for number, (name, kind, text) in enumerate(cases):
            if number < options.first or options.only not in name:
                continue
            if time.monotonic() - began > options.seconds:
                break
            outcome, found = outcome_of(lambda name=name, text=text: _built(name, text, stepper))
            if outcome == "read":
                outcome = found
            elif outcome == "refused" and name.rsplit(".", 1)[-1] not in found:
                outcome = "fault"
            tally.add(kind, outcome, setting=name, value=text, found=found)
            tally.following = number + 1
    return tally


CHOSEN = ("recipe", "scale", "dataset")
"""Fields of an experiment that are no settings."""


def _built(name: str, text: str, stepper: Any) -> str:
    """Builds an experiment or a protocol with one setting; ``trained`` if a step with it was tried."""
    given = parse_overrides([f"--{name}", text])
    if name.startswith("protocol."):
        load_protocol("spatial_dev", None, **given["protocol"])
        return "accepted"
    experiment = load("e2_flow", "smoke", overrides=given)
    if from_dict(to_dict(experiment)) != experiment:
        raise AssertionError("another experiment is saved")
    return "trained" if stepper.try_step(name, given) else "accepted"


OPTIONS: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "evaluate": (["--run", "/nowhere"], (
        "batch", "videos", "workers", "episodes", "first-index", "horizon", "delay", "ensemble", "target-velocity",
        "camera-dropout", "oracle", "max-steps", "seed", "shard", "tasks", "suite", "init", "corruption", "env",
    )),
    "convert": (["/nowhere", "--out", "/nowhere/out"], (
        "image-size", "frame-stride", "max-episodes", "layout", "grippers", "revision", "gripper", "rows",
    )),
    "record": (["--out", "/proc/nowhere"], (
        "episodes", "seed", "workers", "perturbed", "label-steps", "image-size", "frame-stride", "failures", "tasks",
        "suite",
    )),
    "encode": (["--data", "/nowhere", "--out", "/nowhere/out"], (
        "views", "max-shift", "batch", "clip", "grid", "camera", "model",
    )),
    "diagnose": (["--run", "/nowhere"], ("batches", "split", "data", "encoder.model", "prompt.tokenizer")),
    "view": (["/nowhere", "--out", "/nowhere/out.html"], ("episodes", "per-task", "latents")),
    "compare": (["/nowhere", "/nowhere/too"], ("a", "b")),
    "serve": (["--run", "/nowhere"], ("horizon", "max-sessions", "max-batch", "listen")),
    "train": (["--config", "e2_flow", "--dry-run"], ("scale", "data", "config", "run", "train.steps", "data.path")),
    "export": (["--run", "/nowhere", "--out", "/nowhere/out"], ("policy",)),
    "probe": (["--data", "/nowhere"], ("camera", "backbone", "scale")),
}  # fmt: skip
"""Commands, arguments that lead nowhere, and the options that are tried beside them."""


def sweep_options(options: argparse.Namespace) -> Tally:
    """Gives the options of every command every value: status 0 or 2, and one line in the end."""
    tally = Tally("options")
    for command, (arguments, names) in OPTIONS.items():
        main_ = importlib.import_module(f"wmjax.{command}").main
        for name in names:
            for texts in VALUES.values():
                for text in texts:
                    line = [*arguments, f"--{name}={text}"]
                    outcome, found = outcome_of(lambda line=line, main_=main_: _status(main_, line))
                    tally.add(command, found[0] if outcome == "read" else outcome, line=line, found=found)
    return tally


def _status(main_: Callable[[list[str]], int], line: list[str]) -> tuple[str, str]:
    """``refused`` or ``accepted``, and what a command printed last.

    Raises:
        AssertionError: another status than 0 or 2, or no line.

    """
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        try:
            status = main_(line)
        except SystemExit as end:  # argparse's own refusals
            status = end.code if isinstance(end.code, int) else 2
    last = (errors.getvalue().strip().splitlines() or [""])[-1]
    if status not in (0, 2) or (status == 2 and "error: " not in last):
        raise AssertionError(f"status {status}, {last[:200]!r}")
    return ("accepted" if status == 0 else "refused"), last


COLUMNS = ("refused", "read", "accepted", "trained", "fault")


def table(paths: list[Path]) -> str:
    """The pieces of all sweeps as Markdown, one table per sweep."""
    sweeps: dict[str, dict[str, Counter[str]]] = {}
    for path in paths:
        piece = json.loads(path.read_text(encoding="utf-8"))
        rows = sweeps.setdefault(piece["sweep"], {})
        for row, counts in piece["counts"].items():
            rows.setdefault(row, Counter()).update(counts)
    lines: list[str] = []
    for sweep, rows in sweeps.items():
        used = [column for column in COLUMNS if column == "fault" or any(row[column] for row in rows.values())]
        lines += ["", f"| {sweep} | tried | {' | '.join(used)} |", "|---" * (len(used) + 2) + "|"]
        total: Counter[str] = sum(rows.values(), Counter())
        for row, counts in [*rows.items(), ("together", total)]:
            cells = [str(counts[column]) for column in used]
            lines.append(f"| {row} | {sum(counts.values()):,} | {' | '.join(cells)} |")
    return "\n".join(lines[1:])


SWEEPS = {"files": sweep_files, "settings": sweep_settings, "options": sweep_options}


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in SWEEPS:
        each = commands.add_parser(name)
        each.add_argument("--count", type=int, default=10_000, help="files: how many are damaged")
        each.add_argument("--first", type=int, default=0, help="number of the first case")
        each.add_argument("--seed", type=int, default=0)
        each.add_argument("--seconds", type=float, default=float("inf"), help="ends after so long")
        each.add_argument("--only", default="", help="inputs or settings whose name holds this")
        each.add_argument("--out", type=Path)
    commands.add_parser("table").add_argument("pieces", type=Path, nargs="+")
    options = parser.parse_args(arguments)
    if options.command == "table":
        print(table(options.pieces))
        return 0
    logging.getLogger("wmjax").setLevel(logging.ERROR)
    tally = SWEEPS[options.command](options)
    tally.write(options.out)
    tried = sum(sum(counts.values()) for counts in tally.counts.values())
    print(f"{tried} tried, {len(tally.faults)} faults; next {tally.following}")
    return 1 if tally.faults else 0


if __name__ == "__main__":
    sys.exit(main())
