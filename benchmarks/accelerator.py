"""Measures what one accelerator does with wmjax in ten minutes, beside PyTorch on the same chip.

    python benchmarks/accelerator.py [--budget 560] [--out FILE.jsonl]       every stage, the most valuable first
    python benchmarks/accelerator.py --only vlm_step,decision                some of them
    JAX_PLATFORMS=cpu python benchmarks/accelerator.py --tiny                the rehearsal: the same code, tiny sizes

Every stage is a separate process with a time limit, so that a missing package, an exhausted memory or a hang costs
one stage; this file imports the standard library only. A stage that does not fit into what is left of ``--budget``
(seconds) is skipped, and says so. Every number is appended to the results file, one JSON object per line, the moment
it is known; the stages' output goes to a ``.log`` beside it. Weights are random and made on the device (only the
products of real weights have other values, not other speeds), nothing is downloaded, and no setting of the device is
changed. What is measured is in the docstring of each module of ``benchmarks/accelerator_stages``.
"""

import argparse
import dataclasses
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"
REHEARSAL_PATIENCE = 30
"""Factor on the limits of a rehearsal: it may share two cores with much other work."""
REHEARSAL = {
    "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
    "OMP_NUM_THREADS": "1",
}
"""Compiling takes longest there, and PyTorch's threads would wait for each other on a busy machine."""
TAIL = 400
"""Characters of a failed stage's output that its line in the results keeps."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """A time limit, the seconds below which it is not worth starting, and what its environment adds."""

    limit: float
    least: float
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


TORCH_ONLY = {"JAX_PLATFORMS": "cpu"}
BOTH_FRAMEWORKS = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}

STAGES = {
    "probe": Stage(60, 20, BOTH_FRAMEWORKS),  # it also pays for the cold imports
    "train_step": Stage(175, 60),
    "checkpoints": Stage(80, 40),
    "torch_step": Stage(110, 35, TORCH_ONLY),
    "vlm_step": Stage(95, 45),
    "decision": Stage(80, 40),
    "export": Stage(75, 35, BOTH_FRAMEWORKS),
    "simulator": Stage(75, 40),
}
"""In order of value, but for what a stage needs of an earlier one."""

COMMON = {
    "PYTHONUNBUFFERED": "1",
    "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92",
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
}


class Results:
    """A file of JSON lines that a stage and this process append to in turns."""

    def __init__(self, path: Path, started: float, tiny: bool) -> None:
        self.path, self.started, self.tiny = path, started, tiny
        path.parent.mkdir(parents=True, exist_ok=True)

    def add(self, stage: str, **values: Any) -> None:
        """Appends one line, with the seconds since the start; those of a rehearsal are marked."""
        row = {"stage": stage, "at": round(time.time() - self.started, 1)} | ({"tiny": True} if self.tiny else {})
        line = json.dumps(row | values)
        print(line, flush=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a stage's process ended; 124 if it was stopped at its limit."""

    status: int
    seconds: float
    output: str


def run_stage(name: str, limit: float, results: Results, scratch: Path) -> Outcome:
    """Runs one stage and everything that it starts, for at most ``limit`` seconds."""
    command = [sys.executable, "-m", "benchmarks.accelerator_stages", name]
    command += ["--out", str(results.path), "--scratch", str(scratch), "--started", str(results.started)]
    command += ["--deadline", str(time.time() + limit - 3)] + (["--tiny"] if results.tiny else [])
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | COMMON | {"PYTHONPATH": path, "WMJAX_CACHE": str(scratch / "cache")}
    environment |= {**STAGES[name].environment, **(REHEARSAL if results.tiny else {})}
    started, log = time.time(), scratch / f"{name}.log"
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            status = 124
        finally:
            if process.poll() is None:  # a signal must not leave it on the device either
                os.killpg(process.pid, signal.SIGKILL)  # the stage's own session: itself and its workers
                process.wait()
    return Outcome(status, time.time() - started, log.read_text(encoding="utf-8", errors="replace"))


def measure(names: list[str], budget: float, results: Results, scratch: Path) -> bool:
    """Runs the stages in order; returns whether every one of them was run and ended well."""
    logs, well = results.path.with_suffix(".log"), True
    for name in names:
        stage, left = STAGES[name], budget - (time.time() - results.started)
        if left < stage.least:
            results.add(name, skipped=f"{max(left, 0):.0f} s left, it needs {stage.least:.0f}")
            well = False
            continue
        limit = min(stage.limit * (REHEARSAL_PATIENCE if results.tiny else 1), left - 2)
        known = results.path.stat().st_size
        outcome = run_stage(name, limit, results, scratch)
        print(results.path.read_text(encoding="utf-8")[known:], end="", flush=True)  # the lines that the stage added
        with logs.open("a", encoding="utf-8") as file:
            file.write(f"===== {name}: status {outcome.status}\n{outcome.output}\n")
        failed = {"tail": outcome.output[-TAIL:]} if outcome.status else {}
        results.add(name, status=outcome.status, seconds=round(outcome.seconds, 1), **failed)
        well = well and not outcome.status
    return well


def stop(number: int, frame: object) -> None:
    """The handler of signals such as that of ``timeout``: ends the stage, and then this process."""
    raise SystemExit(128 + number)


def commit() -> str | None:
    """The checkout's commit, if git and a repository are there."""
    try:
        done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() or None


def stage_names(text: str) -> list[str]:
    """The stages of ``--only``, in their own order."""
    wanted = text.split(",") if text else list(STAGES)
    unknown = sorted(set(wanted) - set(STAGES))
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown stage {unknown[0]!r}; choose from {', '.join(STAGES)}")
    return [name for name in STAGES if name in wanted]


def main(arguments: list[str] | None = None) -> int:
    """The command; 1 if a stage failed or did not fit, 128 + its number after a signal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="results file (default: benchmarks/results/accelerator-DATE.jsonl)")
    parser.add_argument("--budget", type=float, default=560, help="seconds for all stages together")
    parser.add_argument("--only", type=stage_names, default=list(STAGES), help="stages, separated by commas")
    parser.add_argument("--scratch", type=Path, help="folder for checkpoints (9 GB), kept; by default a temporary one")
    parser.add_argument("--tiny", action="store_true", help="rehearse at sizes that a CPU runs")
    options = parser.parse_args(arguments)
    kind = "rehearsal" if options.tiny else "accelerator"
    out = options.out or RESULTS / f"{kind}-{time.strftime('%Y%m%d-%H%M%S')}.jsonl"
    results = Results(out.resolve(), time.time(), options.tiny)
    with tempfile.TemporaryDirectory() as temporary:
        scratch = (options.scratch or Path(temporary)).resolve()
        scratch.mkdir(parents=True, exist_ok=True)
        host = {"python": platform.python_version(), "cores": os.cpu_count(), "commit": commit()}
        results.add("start", stages=options.only, budget=options.budget, **host)
        well = False
        try:
            well = measure(options.only, options.budget, results, scratch)
        finally:
            results.add("end", complete=well)
    return int(not well)


if __name__ == "__main__":
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, stop)
    sys.exit(main())
