"""Measures how often the expert succeeds when a new instance replaces it every few control steps.

    python benchmarks/expert_takeover.py [--suite libero_spatial] [--tasks 0,1,2,4,6] [--resets 20] [--every 4]

Every take-over makes a new expert that knows nothing of what the one before has done. The resets are demonstrations'
of a seed that no recording uses. It prints one line per task and one per failure.
"""

import argparse
import dataclasses
from collections import Counter

import numpy as np

from wmjax.recording.demonstration import demonstration_id
from wmjax.recording.expert import Expert
from wmjax.sim.env import LiberoEnv
from wmjax.sim.episode import EpisodeId
from wmjax.sim.libero import OBSERVATION_SPEC

SEED = 90
"""The set of placements."""
LIMITS = {"libero_spatial": 220, "libero_object": 280, "libero_goal": 300, "libero_10": 520}
"""Control steps, the benchmark's; 400 in other suites."""


def try_reset(env: LiberoEnv, episode: EpisodeId, every: int) -> tuple[int | None, list[str]]:
    """The step of the first success, None without one, and the phase of every step."""
    env.reset(episode)
    expert, phases = Expert(env), []
    for step in range(LIMITS.get(env.suite, 400)):
        if step % every == 0:
            expert = Expert(env)
        success = env.step(expert.act())
        phases.append(str(expert.phase))
        if success:
            return step + 1, phases
    return None, phases


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--suite", default="libero_spatial")
    p.add_argument("--tasks", default="0,1,2,4,6")
    p.add_argument("--resets", type=int, default=20)
    p.add_argument("--every", type=int, default=4)
    options = p.parse_args()
    for task in map(int, options.tasks.split(",")):
        env = LiberoEnv(options.suite, task, OBSERVATION_SPEC)
        lengths: list[int] = []
        for slot in range(options.resets):
            length, phases = try_reset(env, demonstration_id(options.suite, task, slot, 0, SEED), options.every)
            if length is None:
                print(f"  task {task} reset {slot} failed: {dict(Counter(phases))}, last {phases[-1]}", flush=True)
            else:
                lengths.append(length)
        style = Expert(env).style
        used = "no usual grasp" if style is None else dataclasses.asdict(style)
        print(
            f"task {task}: {len(lengths)} of {options.resets}, mean length {np.mean(lengths or [np.nan]):.0f}, {used}",
            flush=True,
        )
        env.close()


if __name__ == "__main__":
    main()
