"""Does the loader stay flat? Throughput over the size of the index, memory over the number of samples read.

    python benchmarks/loader_scaling.py [--seconds 5] [--out results.json]

The stand-in stores have indices of 10^3 to 10^6 frames that all show the same pixels and have the same latents, so
that only the loader's own work is measured: the shuffled order, the windows, the gathering of batches, of images alone
and with the latents of history and future (16 x 192, two views). Memory is the process's anonymous memory (Linux; pages
of memory-mapped files are the system's), after 10^3 to 10^5 samples with latents.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from wmjax.data.loader import LoaderConfig, make_loader
from wmjax.sim.libero import ACTION_SPEC, OBSERVATION_SPEC

LENGTH, STRIDE, SIZE, ROUNDS = 100, 4, 112, 5
VIEWS, LATENT = 2, (16, 192)
ENTRIES, SAMPLES = (1_000, 10_000, 100_000, 1_000_000), (1_000, 10_000, 100_000)


def placeholder_store(frames: int) -> Any:
    """What the loader reads of a training store, with an index of so many frames in episodes of 25."""
    per_episode = LENGTH // STRIDE
    episodes = frames // per_episode
    steps = np.tile(np.arange(0, LENGTH, STRIDE, dtype=np.int32), episodes)
    number = np.repeat(np.arange(episodes, dtype=np.int32), per_episode)
    table = [
        {
            "frame_start": e * per_episode,
            "num_frames": per_episode,
            "step_start": e * LENGTH,
            "length": LENGTH,
            "task": 0,
        }
        for e in range(episodes)
    ]
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (2, SIZE, SIZE, 3), dtype=np.uint8)
    return SimpleNamespace(
        folder=Path("stand-in"),
        episodes=table,
        frame_episode=number,
        frame_row=number * LENGTH + steps,
        frames=np.broadcast_to(picture, (frames, *picture.shape)),
        state=np.zeros((episodes * LENGTH, 8), np.float32),
        action=np.zeros((episodes * LENGTH, 7), np.float32),
        action_chunk=None,
        injected=None,
        spec=OBSERVATION_SPEC,
        action_spec=ACTION_SPEC,
    )


def placeholder_latents(store: Any) -> Any:
    """What the loader reads of a latent store of these frames."""
    latent = np.random.default_rng(1).normal(size=LATENT).astype(np.float16)
    return SimpleNamespace(
        folder=Path("stand-in"),
        views=np.zeros((len(store.episodes), VIEWS, 2), np.int32),
        latents=np.broadcast_to(latent, (VIEWS, len(store.frames), *LATENT)),
        check=lambda _: None,
    )


def stream(store: Any, with_latents: bool = True) -> Iterator[dict[str, np.ndarray]]:
    """Endless shuffled batches."""
    latents = placeholder_latents(store) if with_latents else None
    return iter(make_loader(store, latents, np.arange(len(store.episodes)), LoaderConfig()))


def rates(sizes: Sequence[int], seconds: float) -> dict[str, dict[int, float]]:
    """Median samples per second by content and size of the index; all take turns, after one warm-up round."""
    kinds = {"images": False, "images and latents": True}
    streams = {
        (kind, size): stream(placeholder_store(size), latents) for kind, latents in kinds.items() for size in sizes
    }
    found: dict[tuple[str, int], list[float]] = {key: [] for key in streams}
    for turn in range(ROUNDS + 1):
        for key, batches in streams.items():
            started, samples = time.perf_counter(), 0
            while not samples or time.perf_counter() - started < seconds / ROUNDS:
                samples += len(next(batches)["images"])
            if turn:
                found[key].append(samples / (time.perf_counter() - started))
    return {kind: {size: float(np.median(found[kind, size])) for size in sizes} for kind in kinds}


def memory(counts: Sequence[int], entries: int) -> dict[int, float]:
    """Anonymous memory (MB) of this process after so many samples of one stream with latents."""
    batches, read, found = stream(placeholder_store(entries)), 0, {}
    for count in counts:
        while read < count:
            read += len(next(batches)["images"])
        found[count] = anonymous_megabytes()
    return found


def anonymous_megabytes() -> float:
    """``RssAnon`` of /proc/self/status."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return float(next(line for line in lines if line.startswith("RssAnon:")).split()[1]) / 1024


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="of every size")
    parser.add_argument("--entries", type=int, nargs="+", default=ENTRIES)
    parser.add_argument("--samples", type=int, nargs="+", default=SAMPLES)
    parser.add_argument("--out", type=Path, help="a JSON file")
    options = parser.parse_args(arguments)
    # Memory first: what the large indices leave behind would hide a leak.
    megabytes = memory(sorted(options.samples), max(options.samples))
    found = rates(options.entries, options.seconds)
    for kind, values in found.items():
        for size, value in values.items():
            print(f"{size:>9,} index entries: {value:,.0f} samples/s of {kind}")
        print(f"{kind}: the fastest size is {max(values.values()) / min(values.values()):.2f}x the slowest")
    for count, value in megabytes.items():
        print(f"{count:>9,} samples read: {value:,.0f} MB")
    if options.out:
        content = {"samples_per_second": found, "anonymous_megabytes": megabytes}
        options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
