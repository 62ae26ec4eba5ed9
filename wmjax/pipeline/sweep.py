"""A resumable queue of trainings and evaluations: each cell in separate processes, one JSON file once it is done."""

import logging
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wmjax.core import signals
from wmjax.core.errors import UserError
from wmjax.core.files import hash_json, owned, write_json
from wmjax.core.paths import cache_root
from wmjax.core.provenance import provenance
from wmjax.core.reading import read_json
from wmjax.experiment.sweep_plan import Cell, finished, read_plan, resolve, results_folder
from wmjax.pipeline.evaluate_checkpoint import identity
from wmjax.policy.saved import find_policy
from wmjax.reporting.curves import read_metrics
from wmjax.reporting.sweep_tables import write_tables
from wmjax.rollout.protocol import Protocol
from wmjax.rollout.results import read_header, read_records

log = logging.getLogger("wmjax.sweep")
SECONDS = "sweep_seconds.json"
"""In a run's folder: what its stages have taken."""
POLL = 0.1
"""Seconds between two looks at whether a stage has ended."""
STOPPED = (129, 130, 143)
"""Exit statuses of a command that a signal has stopped."""


def sweep(path: Path, *, minutes: float | None = None, dry_run: bool = False) -> int:
    """Runs the unfinished cells of a plan in order; returns the exit status.

    A cell that fails is reported and the others continue; the exit status is then 1.

    Args:
        path: the plan.
        minutes: only cells whose stated minutes fit into what is left of these are begun; all when None.
        dry_run: only says what would run.

    Raises:
        UserError: a plan that cannot be run, or a cell that exists with other settings.

    """
    plan = read_plan(path)
    return run_cells(resolve(plan), results_folder(path, plan), path.stem, minutes=minutes, dry_run=dry_run)


def run_cells(
    cells: list[Cell], folder: Path, plan: str, *, minutes: float | None = None, dry_run: bool = False
) -> int:
    """Runs the unfinished ones of some cells in order, as :func:`sweep` does; returns the exit status.

    Args:
        cells: of one plan.
        folder: of the finished cells' JSON files.
        plan: its name; the runs are below ``<cache>/sweeps/<plan>``.
        minutes: see :func:`sweep`.
        dry_run: likewise.

    Raises:
        UserError: a cell that exists with other settings.

    """
    done = finished(cells, folder)
    left = [cell for cell in cells if cell.name not in done]
    total = sum(cell.minutes for cell in left)
    log.info("%s: %d of %d cells to run, %.0f min stated, results in %s", plan, len(left), len(cells), total, folder)
    if dry_run:
        print("\n".join(f"{cell.minutes:8.1f} min  {cell.name}" for cell in left) or "nothing is left to run")
        return 0
    with owned(cache_root() / "sweeps" / plan, "sweep", "give the plan another name"):
        return _run_all(left, folder, plan, minutes)


def _run_all(cells: Sequence[Cell], folder: Path, plan: str, minutes: float | None) -> int:
    began, status, left = time.monotonic(), 0, sum(cell.minutes for cell in cells)
    for cell in cells:
        spent = (time.monotonic() - began) / 60
        if minutes is not None and spent + cell.minutes > minutes:
            log.info("the stated time of %s is %.1f min, %.1f are left", cell.name, cell.minutes, minutes - spent)
            continue
        log.info("cell %s: %.1f min stated, %.0f min for all that are left", cell.name, cell.minutes, left)
        code = run_cell(cell, folder, plan)
        if code in STOPPED:
            return code
        if code:
            log.error("cell %s failed (exit status %d); the others continue", cell.name, code)
            status = 1
        left -= cell.minutes
    return status


def run_cell(cell: Cell, folder: Path, plan: str) -> int:
    """Trains and evaluates one cell in separate processes, and writes its JSON; returns the exit status."""
    run = cache_root() / "sweeps" / plan / cell.name
    train = ["wmjax.train", *cell.arguments, "--run", str(run), "--no-evaluation"]
    if code := _timed(run, "training", [*cell.through, *train]):
        return code
    for protocol in cell.protocols:
        if code := _timed(run, "evaluation", [*cell.through, *_evaluation(cell, protocol, run)]):
            return code
    write_json(folder / f"{cell.name}.json", _content(cell, run, plan))
    return 0


def _timed(run: Path, stage: str, words: Sequence[str]) -> int:
    """Runs a command and adds its seconds to what the cell has taken, also where it was interrupted before."""
    began = time.monotonic()
    try:
        return _call(words)
    finally:
        seconds = _seconds(run)
        seconds[stage] = seconds.get(stage, 0.0) + time.monotonic() - began
        run.mkdir(parents=True, exist_ok=True)
        write_json(run / SECONDS, seconds)


def _seconds(run: Path) -> dict[str, float]:
    path = run / SECONDS
    return read_json(path, dict[str, float], "delete it") if path.is_file() else {}


def _evaluation(cell: Cell, protocol: Protocol, run: Path) -> list[str]:
    tasks = ",".join(map(str, protocol.tasks))
    words = ["wmjax.evaluate", "--run", str(run), "--protocol", protocol.name, "--tasks", tasks]
    words += ["--episodes", str(protocol.episodes_per_task), "--out", str(_results(run, protocol))]
    settings = cell.experiment.evaluation
    words += ["--workers", str(settings.workers), "--batch", str(settings.batch), "--max-wait", str(settings.max_wait)]
    words += ["--evaluation.timeout", str(settings.timeout)]
    words += ["--render-devices", ",".join(map(str, settings.render_devices))] if settings.render_devices else []
    words += ["--metrics", *settings.metrics] if settings.metrics else []
    return [*words, "--videos", "0"]


def _results(run: Path, protocol: Protocol) -> Path:
    return run / "sweep" / protocol.name


def _call(words: Sequence[str]) -> int:
    """Runs a module with its arguments and returns its exit status.

    A signal is passed on, and this process waits until the other one has saved: the same command, given again at once,
    would find its run in use.

    Raises:
        Stopped: a signal came.

    """
    with signals.postponed():
        process = subprocess.Popen([sys.executable, "-m", *words])
        try:
            while process.poll() is None and not signals.requested():
                time.sleep(POLL)
        finally:
            process.terminate()
            status = process.wait()
    signals.stop_if_requested()
    return status


def _content(cell: Cell, run: Path, plan: str) -> dict[str, Any]:
    """Everything about a finished cell that tables, figures and a reader of the numbers need."""
    found = find_policy(run)
    took = {name: round(value / 60, 2) for name, value in _seconds(run).items()}
    curves = read_metrics(run / "metrics.jsonl").curves
    return {
        **provenance(),
        "plan": plan,
        "cell": cell.cell,
        "seed": cell.seed,
        "minutes": {"stated": cell.minutes, **took},
        **cell.identity,
        **identity(run),
        "experiment": cell.identity["experiment"],
        "specs": {name: None if spec is None else hash_json(spec) for name, spec in found.meta["specs"].items()},
        "store": found.meta.get("store"),
        "validation": {name: points[-1][1] for (split, name), points in curves.items() if split == "val"},
        "evaluations": {protocol.name: _outcomes(run, protocol) for protocol in cell.protocols},
    }


def _outcomes(run: Path, protocol: Protocol) -> dict[str, Any]:
    """The evaluation's header and the outcome and length of every episode."""
    folder = _results(run, protocol)
    records = sorted(read_records(folder), key=lambda record: (record.suite, record.task_id, record.index))
    if len(records) != len(protocol.episodes()):
        raise UserError(f"{folder}: {len(records)} of {len(protocol.episodes())} episodes; repeat the command")
    return {
        "simulator": (read_header(folder).get("observation") or {}).get("simulator", ""),
        "episodes": {record.key: [record.outcome, record.steps] for record in records},
    }


def tables(path: Path) -> None:
    """Rewrites the tables and the figure of a plan's finished cells from their JSON files alone.

    Raises:
        UserError: a plan that cannot be read, or no finished cell.

    """
    for written in write_tables(results_folder(path, read_plan(path))):
        print(f"written: {written}")
