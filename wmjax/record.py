"""``python -m wmjax.record``: demonstrations of a scripted expert in LIBERO, as a training store.

With ``--every-step`` an image is kept of every control step and a LeRobot v3.0 dataset is written instead, with the
keys and conventions of ``HuggingFaceVLA/libero``; its actions are the expert's labels.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence

from wmjax import logs
from wmjax.commands import run_command
from wmjax.data.lerobot.writer import write_lerobot_v30
from wmjax.data.location import local
from wmjax.errors import UserError
from wmjax.sim.demonstration import DemonstrationConfig
from wmjax.sim.failures import FailureConfig
from wmjax.sim.record import record
from wmjax.specs import ObservationSpec

LEROBOT_IMAGE_SIZE = 256


def parser() -> argparse.ArgumentParser:
    """The command line."""
    defaults, spec = DemonstrationConfig(), ObservationSpec()
    p = argparse.ArgumentParser(prog="python -m wmjax.record", description=__doc__)
    p.add_argument("--suite", default="libero_spatial")
    p.add_argument("--tasks", type=_task_list, default=list(range(10)), help="task ids such as 0,1,2 (default: 0-9)")
    p.add_argument("--episodes", type=int, default=24, help="demonstrations per task (default: %(default)s)")
    p.add_argument("--out", type=local, required=True, help="folder to write; resumed if it exists")
    p.add_argument("--workers", type=int, default=2, help="simulator processes (default: %(default)s)")
    p.add_argument("--seed", type=int, default=defaults.seed, help="set of random placements (default: %(default)s)")
    p.add_argument("--perturbed", type=float, default=defaults.perturbed_fraction, help="fraction with noisy execution")
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
    return p


def _task_list(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of task ids such as 0,1,2") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    logs.set_up()
    return run_command(lambda: _run(parser().parse_args(arguments)))


def _run(options: argparse.Namespace) -> int:
    every, out = options.every_step, options.out
    if every and out.exists():
        raise UserError(f"--out {out} exists already, nothing was overwritten; choose a new folder or delete it")
    size = options.image_size or (LEROBOT_IMAGE_SIZE if every else ObservationSpec().image_size)
    spec = ObservationSpec(image_size=size, frame_stride=1 if every else options.frame_stride)
    config = DemonstrationConfig(
        seed=options.seed,
        perturbed_fraction=options.perturbed,
        label_steps=0 if every else options.label_steps,
        failures=FailureConfig(fraction=options.failures),
    )
    folder = out.with_name(f"{out.name}.recording") if every else out
    store = record(folder, options.suite, options.tasks, options.episodes, spec, workers=options.workers, config=config)
    if every:
        episodes = range(len(store.episodes))
        write_lerobot_v30(out, (store.episode(index) for index in episodes), robot_type="panda")
        shutil.rmtree(folder)
    print(f"{len(store.episodes)} demonstrations, {len(store.state)} control steps in {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
