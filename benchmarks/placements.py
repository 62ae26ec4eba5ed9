"""How far objects move while random placements and the benchmark's initial states settle.

    python benchmarks/placements.py [--suite libero_spatial] [--tasks 0,1,2,4,6] [--episodes 20] [--first 100000]

For each task it prints how many episodes of each kind have an object that moves by more than 1 cm, how far the farthest
moves, how many have one that is in motion at the end, and how many placements had to be drawn for the random ones.
"""

import argparse

import numpy as np

from wmjax.sim.env import LiberoEnv
from wmjax.sim.episode import EpisodeId
from wmjax.sim.libero import OBSERVATION_SPEC
from wmjax.sim.placement import MAX_SPEED


def draws(env: LiberoEnv, episode: EpisodeId) -> int:
    """How many placements are drawn until objects stand."""
    count = 1
    while env.settle(episode, count - 1).disturbed:
        count += 1
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", default="libero_spatial")
    parser.add_argument("--tasks", default="0,1,2,4,6")
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--first", type=int, default=100_000, help="index of the first random placement")
    options = parser.parse_args()
    for task in map(int, options.tasks.split(",")):
        env = LiberoEnv(options.suite, task, OBSERVATION_SPEC)
        for init, first in (("random", options.first), ("benchmark", 0)):
            episodes = [EpisodeId(options.suite, task, init, first + n) for n in range(options.episodes)]
            motions = [env.settle(episode, 0) for episode in episodes]
            farthest = np.array([motion.moved.max() for motion in motions])
            restless = sum(bool((motion.speed > MAX_SPEED).any()) for motion in motions)
            drawn = sum(draws(env, episode) for episode in episodes) if init == "random" else options.episodes
            print(
                f"task {task} {init:9}: {(farthest > 0.01).sum():2d} of {options.episodes} move by more than 1 cm, "
                f"the farthest {100 * farthest.max():4.1f} cm; {restless} in motion; {drawn} placements drawn",
                flush=True,
            )
        env.close()


if __name__ == "__main__":
    main()
