"""Control steps per second of LIBERO, rendered with EGL: one process, then as many as the host has work for.

Both cameras are rendered at every fourth control step. The processes build first and start the clock together.
"""

import functools
from typing import Any

from benchmarks.accelerator_stages.session import Session
from wmjax.sim import speed


def run(session: Session) -> None:
    """The stage."""
    for workers in session.sizes.simulators:
        needs = speed.BUILD_SECONDS + session.sizes.simulator_seconds + 2
        session.attempt(functools.partial(measure, session, workers), needs=needs, workers=workers)


def measure(session: Session, workers: int) -> dict[str, Any]:
    """The workers' rates; the stage's own limit ends one that hangs."""
    size = 112 if session.results.tiny else 224
    return speed.measure(workers, size, session.sizes.simulator_seconds, environment={"MUJOCO_GL": "egl"})
