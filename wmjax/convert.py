"""Converts a LeRobot dataset, or LIBERO's HDF5 demonstrations, to a training store.

python -m wmjax.convert DATA --out STORE
"""

import argparse
import sys
from typing import get_args

from wmjax.core.command import run_command
from wmjax.core.location import local
from wmjax.data.formats import libero_hdf5
from wmjax.data.formats.importer import Gripper
from wmjax.pipeline.convert import convert_dataset, describe_store
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
    parser.add_argument(
        "--gripper",
        choices=get_args(Gripper),
        default="open-negative",
        help="what opens the gripper in the data (default: open-negative, -1 opens and +1 closes, as in LIBERO)",
    )
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave out episodes that cannot be used; the manifest lists them"
    )
    parser.add_argument(
        "--rows",
        choices=get_args(libero_hdf5.Rows),
        help="HDF5: whether row j of the observations was taken after action j (LIBERO's own files, the default) or "
        "before it (files that were replayed and filtered, without LIBERO's attributes)",
    )

    def body() -> int:
        options = parser.parse_args(arguments)
        print(describe_store(convert_dataset(**vars(options), progress=_show)))
        return 0

    return run_command(body)


def _indices(text: str) -> tuple[int, ...]:
    """``6,13`` or ``none``."""
    return () if text == "none" else task_list(text)


def _show(done: int, total: int) -> None:
    """One progress line per ten episodes."""
    if done % 10 == 0 or done == total:
        print(f"episode {done} of {total}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
