"""Converts a LeRobot dataset, or LIBERO's HDF5 demonstrations, to a training store.

python -m wmjax.convert DATA --out STORE
"""

import argparse
import sys
from pathlib import Path
from typing import get_args

from wmjax.core.command import run_command
from wmjax.core.errors import UserError
from wmjax.core.location import local
from wmjax.data.formats import libero_hdf5
from wmjax.data.formats.importer import Gripper
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
    return run_command(lambda: _convert(parser.parse_args(arguments)))


def _convert(options: argparse.Namespace) -> int:

    settings = {
        "image_size": options.image_size,
        "frame_stride": options.frame_stride,
        "max_episodes": options.max_episodes,
        "gripper": options.gripper,
        "skip_bad": options.skip_bad,
        "progress": _show,
    }
    if libero_hdf5.find_files(Path(options.data)):
        for name in ("layout", "revision", "grippers"):
            if getattr(options, name) is not None:
                raise UserError(f"--{name} is for LeRobot datasets, {options.data} holds HDF5 files; leave it out")
        store = libero_hdf5.convert(Path(options.data), options.out, rows=options.rows or "after", **settings)
    elif options.rows is not None:
        raise UserError(f"--rows is for LIBERO's HDF5 files, {options.data} holds none; leave it out")
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
    if skipped := store.manifest.get("skipped"):
        print(f'left out {len(skipped)} episodes, see "skipped" in {store.folder / "manifest.json"}')
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
