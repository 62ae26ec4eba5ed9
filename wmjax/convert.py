"""``python -m wmjax.convert DATA --out STORE``: a LeRobot dataset becomes a training store."""

import argparse
import sys
from pathlib import Path

from wmjax.commands import run_command


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m wmjax.convert", description=__doc__)
    parser.add_argument("data", help="LeRobot dataset: a folder, or a hub id such as HuggingFaceVLA/libero")
    parser.add_argument("--out", type=Path, required=True, help="the training store to write")
    parser.add_argument("--image-size", type=int, default=112, help="pixels (default 112)")
    parser.add_argument("--frame-stride", type=int, default=4, help="control steps per frame (default 4)")
    parser.add_argument("--layout", help="name of a key layout (default: chosen by the columns)")
    parser.add_argument("--max-episodes", type=int, help="convert only the first so many episodes")
    parser.add_argument("--revision", help="revision of the hub dataset")
    options = parser.parse_args(arguments)
    return run_command(lambda: _convert(options))


def _convert(options: argparse.Namespace) -> int:
    from wmjax.data.lerobot.convert import convert

    store = convert(
        options.data,
        options.out,
        image_size=options.image_size,
        frame_stride=options.frame_stride,
        layout=options.layout,
        max_episodes=options.max_episodes,
        revision=options.revision,
        progress=_show,
    )
    print(f"{store.folder}: {len(store.episodes)} episodes, {len(store.tasks)} tasks, {len(store.frame_step)} frames")
    return 0


def _show(done: int, total: int) -> None:
    """One progress line per ten episodes."""
    if done % 10 == 0 or done == total:
        print(f"episode {done} of {total}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
