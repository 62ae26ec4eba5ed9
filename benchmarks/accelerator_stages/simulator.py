"""Control steps per second of LIBERO, rendered with EGL: one process, then as many as the host has work for.

Both cameras are rendered at every fourth control step. The processes build first and start the clock together.
"""

import functools
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

from benchmarks.accelerator import ROOT
from benchmarks.accelerator_stages.session import Session

BUILD_SECONDS = 20.0
ENVIRONMENT = {"MUJOCO_GL": "egl", "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}


def run(session: Session) -> None:
    """The stage."""
    for workers in session.sizes.simulators:
        needs = BUILD_SECONDS + session.sizes.simulator_seconds + 2
        session.attempt(functools.partial(measure, session, workers), needs=needs, workers=workers)


def measure(session: Session, workers: int) -> dict[str, Any]:
    """The workers' rates added up, and the medians of what their steps took.

    Raises:
        RuntimeError: no worker answered.

    """
    begin, size = time.time() + BUILD_SECONDS, 112 if session.results.tiny else 224
    command = [sys.executable, "-m", "benchmarks.accelerator_stages.simulator_worker", str(begin), str(size)]
    command.append(str(session.sizes.simulator_seconds))
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    environment = os.environ | ENVIRONMENT
    started = [subprocess.Popen([*command, str(index)], cwd=ROOT, env=environment, **pipes) for index in range(workers)]
    answers, outputs = [], []
    for process in started:
        output = process.communicate()[0]  # the stage's own limit ends a worker that hangs
        outputs.append(output)
        answers += [json.loads(line) for line in output.splitlines() if line.startswith('{"steps_per_s"')]
    if not answers:
        raise RuntimeError(outputs[0][-300:])
    medians = {name: statistics.median(a[name] for a in answers) for name in ("render_ms", "step_ms", "build_s")}
    return {
        "steps_per_s": sum(answer["steps_per_s"] for answer in answers),
        **medians,
        "answered": len(answers),
        "late_s": max(answer["late_s"] for answer in answers),
        "renderer": answers[0]["renderer"],
    }
