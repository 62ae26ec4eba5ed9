"""Writes episodes of a training store as a self-contained HTML page, or as a file of the Rerun viewer.

python -m wmjax.view STORE [--latents LATENTS]
python -m wmjax.view STORE --episodes 0 --rerun FILE.rrd [--run RUN]     then: rerun FILE.rrd

The Rerun file has cameras, latents as colours, states and actions along the time. ``--run`` adds what a policy decides
on the recorded frames: its first action, its world error, and the latents that it imagines.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from wmjax.core.command import print_progress, run_command, whole_number
from wmjax.core.errors import UserError
from wmjax.core.location import local, location
from wmjax.core.options import CommandParser
from wmjax.data.latents import LatentStore
from wmjax.data.store import TrainingStore
from wmjax.reporting.dataset_page import choose_episodes, parse_episodes, write_page
from wmjax.reporting.rerun_file import write_rerun
from wmjax.reporting.video.clips import video_bytes


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = CommandParser("view", __doc__)
    parser.add_argument("data", type=location, help="training store")
    parser.add_argument("--latents", type=location, help="latent store of the same frames, shown as colours")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--episodes", type=parse_episodes, help="episode numbers, such as 0,5,9")
    which.add_argument(
        "--per-task", type=whole_number("per-task", 1), default=2, help="the first N episodes of each task (default: 2)"
    )
    parser.add_argument("--out", type=local, default=Path("view.html"), help="the page to write (default view.html)")
    parser.add_argument("--rerun", type=local, metavar="FILE.rrd", help="a file for the Rerun viewer, no page")
    parser.add_argument("--run", help="with --rerun: a run or policy, whose decisions on the episodes are added")

    def body() -> int:
        options, _ = parser.read(arguments)
        if options.run and not options.rerun:
            raise UserError("--run adds a policy's decisions to a --rerun FILE.rrd; name the file")
        store, out = TrainingStore(options.data), options.rerun or options.out
        indices = choose_episodes(store.episodes, options.episodes, options.per_task)
        latents = LatentStore(options.latents) if options.latents is not None else None
        if options.rerun:
            write_rerun(out, store, indices, latents, options.run)
        else:
            write_page(out, store, indices, latents, video_bytes, print_progress)
        print(f"{out}: {len(indices)} episodes, {out.stat().st_size / 1e6:.1f} MB")
        return 0

    return run_command(body)


if __name__ == "__main__":
    sys.exit(main())
