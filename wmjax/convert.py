"""Converts a LeRobot dataset, or LIBERO's HDF5 demonstrations, to a training store.

python -m wmjax.convert DATA --out STORE
"""

import argparse
import sys
from pathlib import Path

from wmjax.core.command import run_command
from wmjax.core.errors import UserError
from wmjax.core.location import local
from wmjax.data.formats import libero_hdf5
from wmjax.data.formats.lerobot.convert import convert
from wmjax.rollout.protocol import task_list


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m wmjax.convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "data",
        help="LeRobot dataset: a folder, or a hub id such as HuggingFaceVLA/libero; or a folder of LIBERO HDF5 files",
    )
    parser.add_argument("--out", type=local, required=True, help="the training store to write")
    parser.add_argument("--image-size", type=int, default=112, help="pixels (default 112)")
    parser.add_argument("--frame-stride", type=int, default=4, help="control steps per frame (default 4)")
    parser.add_argument(
        "--layout",
        help="which LeRobot columns to read: a known name, or a TOML file (default: chosen by the columns)",
    )
    parser.add_argument(
        "--grippers",
        type=_indices,
        help="action dimensions that are gripper commands, such as 6,13, or none (default: those with 'gripper' in "
        "their name)",
    )
    parser.add_argument("--max-episodes", type=int, help="convert only the first so many episodes")
    parser.add_argument("--revision", help="revision of the hub dataset")
    return run_command(lambda: _convert(parser.parse_args(arguments)))


def _convert(options: argparse.Namespace) -> int:

    settings = {
        "image_size": options.image_size,
        "frame_stride": options.frame_stride,
        "max_episodes": options.max_episodes,
        "progress": _show,
    }
    if libero_hdf5.find_files(Path(options.data)):
        for name in ("layout", "revision", "grippers"):
            if getattr(options, name) is not None:
                raise UserError(f"--{name} is for LeRobot datasets, {options.data} holds HDF5 files; leave it out")
        store = libero_hdf5.convert(Path(options.data), options.out, **settings)
    else:
        for name in ("layout", "revision", "grippers"):
            settings[name] = getattr(options, name)
        store = convert(options.data, options.out, **settings)
    spec, action = store.spec, store.action_spec
    print(f"{store.folder}: {len(store.episodes)} episodes, {len(store.tasks)} tasks, {len(store.frame_step)} frames")
    grippers = ", ".join(action.names[index] for index in action.grippers) or "none"
    print(
        f"cameras {', '.join(spec.cameras)}; {spec.state_dim} states, {action.dim} actions (grippers: {grippers}), "
        f"{spec.control_hz:g} per second"
    )
    return 0


def _indices(text: str) -> tuple[int, ...]:
    """``6,13`` or ``none``."""
    return () if text == "none" else task_list(text)


def _show(done: int, total: int) -> None:
    """One progress line per ten episodes."""
    if done % 10 == 0 or done == total:
        print(f"episode {done} of {total}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
