"""Records demonstrations of a scripted expert in LIBERO as a training store.

python -m wmjax.record --out STORE

By default the executed actions of most episodes are perturbed (``--perturbed``), and failures are provoked
(``--failures``); the stored labels are the expert's own actions. With ``--every-step`` every control step has an image,
and the output is a LeRobot v3.0 dataset with the keys and conventions of ``HuggingFaceVLA/libero``. With
``--random-motion`` the arm moves at random through the scenes of many tasks, for the pre-training and the probing of
encoders.
"""

import argparse
import dataclasses
import functools
import sys
from collections.abc import Sequence

from wmjax.core import logs
from wmjax.core.command import run_command
from wmjax.core.location import local
from wmjax.pipeline.record_policy import record_policy
from wmjax.recording.demonstration import DemonstrationConfig
from wmjax.recording.failures import FailureConfig
from wmjax.recording.random_motion import EPISODES_PER_TASK, SUITES, TASKS_PER_SUITE, record_random_motion
from wmjax.recording.record import record, record_dataset
from wmjax.rollout.protocol import task_list
from wmjax.sim.libero import OBSERVATION_SPEC

LEROBOT_IMAGE_SIZE = 256
DEMONSTRATIONS_PER_TASK = 24


def parser() -> argparse.ArgumentParser:
    """The command line."""
    defaults, spec = DemonstrationConfig(), OBSERVATION_SPEC
    p = argparse.ArgumentParser(
        prog="python -m wmjax.record", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--suite", default="libero_spatial")
    p.add_argument("--tasks", type=task_list, default=tuple(range(10)), help="task ids such as 0,1,2 (default: 0-9)")
    p.add_argument(
        "--episodes",
        type=int,
        help=f"per task (default: {DEMONSTRATIONS_PER_TASK}; with --random-motion {EPISODES_PER_TASK})",
    )
    p.add_argument("--out", type=local, required=True, help="folder to write; resumed if it exists")
    p.add_argument("--workers", type=int, default=2, help="simulator processes (default: %(default)s)")
    p.add_argument("--seed", type=int, default=defaults.seed, help="set of random placements (default: %(default)s)")
    p.add_argument(
        "--perturbed",
        type=float,
        default=defaults.perturbed_fraction,
        help="share of episodes whose executed actions are perturbed (default: %(default)s)",
    )
    p.add_argument(
        "--failures",
        type=float,
        default=defaults.failures.fraction,
        help="fraction with provoked failures that the expert mends (default: %(default)s)",
    )
    p.add_argument(
        "--label-steps",
        type=int,
        default=defaults.label_steps,
        help="control steps of the chunk that the undisturbed expert would execute from every image on, which training "
        "learns; 0 records none, as --every-step does (default: %(default)s)",
    )
    p.add_argument("--image-size", type=int, help=f"default: {spec.image_size}; with --every-step {LEROBOT_IMAGE_SIZE}")
    p.add_argument("--frame-stride", type=int, default=spec.frame_stride, help="control steps between images")
    p.add_argument("--every-step", action="store_true", help="write a LeRobot v3.0 dataset, an image at every step")
    p.add_argument("--run", help="DAgger: this run's policy (or mini) acts, the expert labels each state it reaches")
    p.add_argument("--random-motion", action="store_true", help="record random motion instead of demonstrations")
    p.add_argument("--suites", nargs="+", default=list(SUITES), help="of --random-motion")
    p.add_argument("--tasks-per-suite", type=int, default=TASKS_PER_SUITE, help="of --random-motion")
    p.add_argument("--first-episode", type=int, default=0, help="of --random-motion: number of each task's first one")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    logs.set_up()
    return run_command(lambda: _run(parser().parse_args(arguments)))


def _run(options: argparse.Namespace) -> int:
    if options.random_motion:
        store = record_random_motion(
            options.out,
            options.suites,
            tasks_per_suite=options.tasks_per_suite,
            episodes=EPISODES_PER_TASK if options.episodes is None else options.episodes,
            first_episode=options.first_episode,
            workers=options.workers,
        )
        print(f"{options.out}: {len(store.episodes)} episodes, {len(store.frame_step)} frames")
        return 0
    every = options.every_step
    size = options.image_size or (LEROBOT_IMAGE_SIZE if every else OBSERVATION_SPEC.image_size)
    spec = dataclasses.replace(OBSERVATION_SPEC, image_size=size, frame_stride=1 if every else options.frame_stride)
    config = DemonstrationConfig(
        seed=options.seed,
        perturbed_fraction=options.perturbed,
        label_steps=0 if every else options.label_steps,
        failures=FailureConfig(fraction=options.failures),
    )
    episodes = DEMONSTRATIONS_PER_TASK if options.episodes is None else options.episodes
    write = functools.partial(record_policy, run=options.run) if options.run else record_dataset if every else record
    store = write(options.out, options.suite, options.tasks, episodes, spec, workers=options.workers, config=config)
    print(f"{len(store.episodes)} demonstrations, {len(store.state)} control steps in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
