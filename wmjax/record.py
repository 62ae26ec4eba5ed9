"""``python -m wmjax.record``: demonstrations of a scripted expert in LIBERO, as a training store."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from wmjax.errors import UserError
from wmjax.sim.demonstration import DemonstrationConfig
from wmjax.sim.record import record
from wmjax.specs import ObservationSpec


def parser() -> argparse.ArgumentParser:
    """The command line."""
    defaults, spec = DemonstrationConfig(), ObservationSpec()
    p = argparse.ArgumentParser(prog="python -m wmjax.record", description=__doc__)
    p.add_argument("--suite", default="libero_spatial")
    p.add_argument("--tasks", type=_task_list, default=list(range(10)), help="task ids such as 0,1,2 (default: 0-9)")
    p.add_argument("--episodes", type=int, default=24, help="demonstrations per task (default: %(default)s)")
    p.add_argument("--out", type=Path, required=True, help="folder of the training store; resumed if it exists")
    p.add_argument("--workers", type=int, default=2, help="simulator processes (default: %(default)s)")
    p.add_argument("--seed", type=int, default=defaults.seed, help="set of random placements (default: %(default)s)")
    p.add_argument("--perturbed", type=float, default=defaults.perturbed_fraction, help="fraction with noisy execution")
    p.add_argument("--image-size", type=int, default=spec.image_size)
    p.add_argument("--frame-stride", type=int, default=spec.frame_stride)
    return p


def _task_list(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of task ids such as 0,1,2") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    a = parser().parse_args(arguments)
    spec = ObservationSpec(image_size=a.image_size, frame_stride=a.frame_stride)
    config = DemonstrationConfig(seed=a.seed, perturbed_fraction=a.perturbed)
    try:
        store = record(a.out, a.suite, a.tasks, a.episodes, spec, workers=a.workers, config=config)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"interrupted; finished episodes are in {a.out}, run the same command to go on", file=sys.stderr)
        return 130
    print(f"{len(store.episodes)} demonstrations, {len(store.state)} control steps in {a.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
