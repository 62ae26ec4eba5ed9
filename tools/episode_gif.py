"""Makes a small animated picture of an evaluated episode: ``python tools/episode_gif.py EVALUATION out.gif``.

EVALUATION is a results folder such as RUN/evaluations/00003000/spatial_dev, whose ``videos/`` show the cameras above
what the Prophet predicted and the action chunk; or one of these videos. Of a folder the first successful episode is
taken. Frames are dropped, then the picture is made smaller, until the file is small enough.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from PIL import Image

from wmjax.core.command import run_command
from wmjax.core.errors import UserError
from wmjax.core.files import atomic_path

LIMIT = 1_500_000
"""Bytes."""
SIZES = ((1, 1.0), (2, 1.0), (2, 0.8), (3, 0.8), (3, 0.6), (4, 0.5))
"""Every n-th frame is kept at a share of the video's size; tried in this order."""
COLOURS = 128
LAST_FRAME = 1500
"""How long (ms) the last frame stays."""


def choose_video(source: Path) -> Path:
    """The video itself, or the first one of a results folder: of a success if there is one.

    Raises:
        UserError: there is no video.

    """
    if source.suffix == ".mp4" and source.is_file():
        return source
    videos = sorted((source / "videos").glob("*.mp4"))
    if not videos:
        raise UserError(f"{source} has no videos; evaluate with --videos 1, or give a results folder or an .mp4 file")
    return next((video for video in videos if "__success" in video.stem), videos[0])


def read_video(path: Path) -> tuple[list[Image.Image], float]:
    """The frames of a video and their rate (1/s)."""
    with av.open(str(path)) as container:
        rate = float(container.streams.video[0].average_rate or 5)
        return [Image.fromarray(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)], rate


def write_gif(path: Path, frames: list[Image.Image], rate: float, scale: float) -> int:
    """Writes an endless GIF with one palette for all frames; returns its size in bytes."""
    width, height = (round(side * scale) for side in frames[0].size)
    small = [frame.resize((width, height), Image.Resampling.LANCZOS) for frame in frames]
    # One palette for all: colours that change from frame to frame would flicker, and cost bytes.
    palette = Image.fromarray(np.concatenate([np.asarray(frame) for frame in small[:: max(1, len(small) // 4)]]))
    palette = palette.quantize(COLOURS, method=Image.Quantize.MEDIANCUT)
    drawn = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in small]
    durations = [round(1000 / rate)] * (len(drawn) - 1) + [LAST_FRAME]
    with atomic_path(path) as temporary:
        drawn[0].save(
            temporary, format="GIF", save_all=True, append_images=drawn[1:], duration=durations, loop=0, optimize=True
        )
    return path.stat().st_size


def candidates(frames: list[Image.Image], rate: float) -> Iterator[tuple[list[Image.Image], float, float]]:
    """Frames, rate and scale, from the largest file to the smallest; the last frame is always among them."""
    for stride, scale in SIZES:
        yield frames[:-1:stride] + frames[-1:], rate / stride, scale


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="results folder of an evaluation, or a video of it")
    parser.add_argument("out", type=Path, help="the GIF to write")
    parser.add_argument("--limit", type=int, default=LIMIT, help="largest size in bytes (default: %(default)s)")
    parser.add_argument("--speed", type=float, default=2.0, help="of the video (default: %(default)s)")

    def body() -> int:
        options = parser.parse_args(arguments)
        video = choose_video(options.source)
        frames, rate = read_video(video)
        for selected, selected_rate, scale in candidates(frames, rate):
            size = write_gif(options.out, selected, selected_rate * options.speed, scale)
            if size <= options.limit:
                print(f"{options.out}: {size / 1e6:.2f} MB, {len(selected)} of {len(frames)} frames of {video.name}")
                return 0
        options.out.unlink()
        raise UserError(f"{video} does not fit into {options.limit} bytes; raise --limit or choose a shorter episode")

    return run_command(body)


if __name__ == "__main__":
    sys.exit(main())
