"""Writes a self-contained HTML page of a training store's episodes.

python -m wmjax.view STORE [--latents LATENTS]
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from wmjax.core.command import run_command
from wmjax.core.location import local, location
from wmjax.data.latents import LatentStore
from wmjax.data.store import TrainingStore
from wmjax.reporting.dataset_page import Frames, choose_episodes, parse_episodes, write_page
from wmjax.reporting.video.clips import write_video


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m wmjax.view", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=location, help="training store")
    parser.add_argument("--latents", type=location, help="latent store of the same frames, shown as colours")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--episodes", help="episode numbers, such as 0,5,9")
    which.add_argument("--per-task", type=int, default=2, help="the first so many of each task (default 2)")
    parser.add_argument("--out", type=local, default=Path("view.html"), help="the page to write (default view.html)")
    return run_command(lambda: _view(parser.parse_args(arguments)))


def _view(options: argparse.Namespace) -> int:
    out, store = options.out, TrainingStore(options.data)
    wanted = parse_episodes(options.episodes) if options.episodes is not None else None
    indices = choose_episodes(store.episodes, wanted, options.per_task)
    latents = LatentStore(options.latents) if options.latents is not None else None
    write_page(out, store, indices, latents, _mp4, _show)
    print(f"{out}: {len(indices)} episodes, {out.stat().st_size / 1e6:.1f} MB")
    return 0


def _mp4(frames: Frames, captions: Sequence[str], rate: float) -> bytes:
    """The bytes of an H.264 video."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "episode.mp4"
        write_video(path, frames, captions, max(rate, 1.0))
        return path.read_bytes()


def _show(done: int, total: int) -> None:
    """One progress line per ten episodes."""
    if done % 10 == 0 or done == total:
        print(f"episode {done} of {total}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
