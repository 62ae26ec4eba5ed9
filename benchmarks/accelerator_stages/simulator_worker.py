"""One simulator process of the stage ``simulator``: builds, waits for the common start, steps, prints its rate."""

import contextlib
import dataclasses
import json
import sys
import time
from typing import Any

import numpy as np

from wmjax.sim.env import LiberoEnv
from wmjax.sim.episode import EpisodeId
from wmjax.sim.libero import OBSERVATION_SPEC

SUITE, TASK = "libero_spatial", 0
RENDER_EVERY = 4
WARM_UP = 8


def build(size: int, index: int) -> LiberoEnv:
    """A simulation that has stepped and rendered."""
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
    """What draws, as OpenGL calls it: a GPU, or Mesa on the CPU."""
    with contextlib.suppress(Exception):
        from OpenGL import GL

        return GL.glGetString(GL.GL_RENDERER).decode()
    return "unknown"


def main() -> None:
    """The command: ``BEGIN SIZE SECONDS INDEX``, begin in seconds since the epoch, size in pixels."""
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
