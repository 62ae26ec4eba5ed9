"""Control steps per second of LIBERO, in one process and in several side by side.

``python -m wmjax.sim.speed BEGIN SIZE SECONDS INDEX`` is one of the processes: it builds, waits for the common start
(BEGIN, in seconds since the epoch), steps, prints its rate. Both cameras are rendered, SIZE pixels wide, at every
fourth control step.
"""

import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wmjax.sim.env import LiberoEnv
from wmjax.sim.episode import EpisodeId
from wmjax.sim.libero import OBSERVATION_SPEC

SUITE, TASK = "libero_spatial", 0
RENDER_EVERY = 4
WARM_UP = 8
BUILD_SECONDS = 20.0
"""A process that takes longer to build starts late, and says by how much."""
SINGLE_THREADED = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}


def measure(
    workers: int, size: int, seconds: float, *, build_s: float = BUILD_SECONDS, environment: Mapping[str, str] = {}
) -> dict[str, Any]:
    """The rates of several processes added up, and the medians of their step times.

    Args:
        workers: processes.
        size: pixels of the cameras' images.
        seconds: that each steps for.
        build_s: seconds until the common start.
        environment: variables of the processes beside this one's.

    Raises:
        RuntimeError: no process answered.

    """
    command = [sys.executable, "-m", "wmjax.sim.speed", str(time.time() + build_s), str(size), str(seconds)]
    root = Path(__file__).resolve().parents[2]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    variables = {**os.environ, **SINGLE_THREADED, **environment}
    started = [subprocess.Popen([*command, str(index)], cwd=root, env=variables, **pipes) for index in range(workers)]
    answers, outputs = [], []
    for process in started:
        output = process.communicate()[0]
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


def build(size: int, index: int) -> LiberoEnv:
    """Builds a simulation that has stepped and rendered."""
    env = LiberoEnv(SUITE, TASK, dataclasses.replace(OBSERVATION_SPEC, image_size=size))
    env.reset(EpisodeId(SUITE, TASK, "random", index))
    env.render()
    for _ in range(WARM_UP):
        env.step(np.zeros(7))
    return env


def rate(env: LiberoEnv, seconds: float, index: int) -> dict[str, Any]:
    """Steps with small random actions for some seconds."""
    rng, steps, renders = np.random.default_rng(index), 0, 0
    stepping = rendering = 0.0
    started = time.perf_counter()
    while (now := time.perf_counter()) - started < seconds:
        env.step(rng.uniform(-0.3, 0.3, 7))
        steps, stepped = steps + 1, time.perf_counter()
        stepping += stepped - now
        if steps % RENDER_EVERY == 0:
            env.render()
            renders, rendering = renders + 1, rendering + time.perf_counter() - stepped
    return {
        "steps_per_s": steps / (time.perf_counter() - started),
        "render_ms": 1e3 * rendering / max(1, renders),
        "step_ms": 1e3 * stepping / steps,
    }


def renderer() -> str:
    """The renderer by its OpenGL name: a GPU, or Mesa on the CPU."""
    with contextlib.suppress(Exception):
        from OpenGL import GL

        return GL.glGetString(GL.GL_RENDERER).decode()
    return "unknown"


def main() -> None:
    """The main function of one process."""
    begin, size, seconds, index = float(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
    started = time.time()
    env = build(size, index)
    ready = time.time()
    time.sleep(max(0.0, begin - ready))
    found = rate(env, seconds, index)
    times = {"build_s": ready - started, "late_s": max(0.0, ready - begin)}
    print("\n" + json.dumps(found | times | {"renderer": renderer()}), flush=True)


if __name__ == "__main__":
    main()
