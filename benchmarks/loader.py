"""Samples per second and core: our loader against a plain per-sample PyTorch DataLoader over the same demonstrations.

    python benchmarks/loader.py STORE [--episodes 20] [--seconds 10] [--out results.json]
    python benchmarks/loader.py LEROBOT_FOLDER ...

The frames of a training store are first written as a LeRobot v3.0 dataset (PNG in parquet; every frame becomes a
control step), which is then converted; a LeRobot folder is converted as it is, without resizing. The plain loader
gathers one sample at a time: columns in memory, parquet rows memory-mapped, images decoded on access, the default
collation. Both deliver the same tensors (checked for every sample), both run on one core, in turns, with warm files.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.utils.data import DataLoader, Dataset

from wmjax.core.store_files import MANIFEST
from wmjax.data.episode import EpisodeData
from wmjax.data.formats.lerobot.convert import convert
from wmjax.data.formats.lerobot.dataset import LeRobotDataset
from wmjax.data.formats.lerobot.images import decode_image
from wmjax.data.formats.lerobot.layout import load_layout
from wmjax.data.formats.lerobot.writer import write_lerobot_v30
from wmjax.data.loader import LoaderConfig, make_loader
from wmjax.data.store import TrainingStore

BATCH, CHUNK, ROUNDS = 32, 8, 5
TARGET = 10.0


class PlainDataset(Dataset):
    """One sample per control step of a LeRobot image dataset."""

    def __init__(self, folder: Path, chunk: int = CHUNK) -> None:
        data = LeRobotDataset(folder)
        self.cameras, self.chunk = list(data.layout.cameras.values()), chunk
        self.columns = [data.columns(entry) for entry in data.episodes]
        self.index = [(e, t) for e, entry in enumerate(data.episodes) for t in range(entry.length)]
        files = sorted({entry.data for entry in data.episodes})
        tables = [pq.read_table(path, columns=self.cameras, memory_map=True) for path in files]
        self.images = pa.concat_tables(tables)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, number: int) -> dict[str, Any]:
        episode, step = self.index[number]
        columns = self.columns[episode]
        actions, mask = [], []
        for later in range(step, step + self.chunk):
            exists = later < len(columns.action)
            action = columns.action[min(later, len(columns.action) - 1)].copy()
            if not exists:  # stay, and keep the gripper as it is
                action[:-1] = 0.0
            actions.append(action)
            mask.append(exists)
        cells = [self.images[key][number].as_py()["bytes"] for key in self.cameras]
        return {
            "images": torch.from_numpy(np.stack([decode_image(cell, "image") for cell in cells])),
            "state": torch.from_numpy(columns.state[step]),
            "action": torch.from_numpy(np.stack(actions)),
            "action_mask": torch.tensor(mask),
            "sample_id": number,
        }


def as_lerobot(store: TrainingStore, folder: Path, episodes: int) -> None:
    """Writes the frames of a store's first episodes as a dataset whose control steps are the store's frames."""

    def parts() -> Iterator[EpisodeData]:
        for index in range(min(episodes, len(store.episodes))):
            episode = store.episode(index)
            rows, count = episode.frame_step, len(episode.frame_step)
            yield EpisodeData(
                np.asarray(episode.images),
                np.arange(count, dtype=np.int32),
                episode.state[rows],
                episode.action[rows],
                episode.executed[rows],
                np.zeros(0),
                episode.meta,
            )

    layout = load_layout("HuggingFaceVLA/libero")
    write_lerobot_v30(folder, parts(), store.spec, store.action_spec, layout=layout)


def ours(store: TrainingStore, epochs: int | None = None) -> Iterator[dict[str, np.ndarray]]:
    """Our batches, shuffled, without augmentation."""
    config = LoaderConfig(batch_size=BATCH, chunk=CHUNK, max_shift=0, num_epochs=epochs, drop_remainder=False)
    return iter(make_loader(store, None, np.arange(len(store.episodes)), config))


def plain(dataset: PlainDataset) -> Iterator[dict[str, torch.Tensor]]:
    """Endless shuffled batches of the plain loader."""
    loader = DataLoader(dataset, batch_size=BATCH, shuffle=True, num_workers=0)
    while True:
        yield from loader


def require_same(store: TrainingStore, dataset: PlainDataset) -> int:
    """Compares every sample; returns how many.

    Raises:
        AssertionError: a tensor differs.

    """
    compared = 0
    for batch in ours(store, epochs=1):
        for row in np.flatnonzero(batch["sample_mask"]):
            sample = dataset[int(batch["sample_id"][row])]
            for name in ("images", "state", "action", "action_mask"):
                np.testing.assert_array_equal(batch[name][row], sample[name].numpy())
            compared += 1
    assert compared == len(dataset)
    return compared


def rate(stream: Iterator[dict[str, Any]], seconds: float) -> float:
    """Samples per second over about so many seconds, at least one batch."""
    started, samples = time.perf_counter(), 0
    while not samples or time.perf_counter() - started < seconds:
        samples += len(next(stream)["images"])
    return samples / (time.perf_counter() - started)


def measure(store: TrainingStore, dataset: PlainDataset, seconds: float) -> dict[str, float]:
    """Median samples per second of both, in turns after one warm-up round, and their ratio."""
    streams = {"ours": ours(store), "plain": plain(dataset)}
    rates: dict[str, list[float]] = {name: [] for name in streams}
    for turn in range(ROUNDS + 1):
        for name, stream in streams.items():
            value = rate(stream, seconds / ROUNDS)
            if turn:
                rates[name].append(value)
    found = {name: float(np.median(values)) for name, values in rates.items()}
    return found | {"ratio": found["ours"] / found["plain"]}


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="training store, or LeRobot image dataset")
    parser.add_argument("--episodes", type=int, default=20, help="of a training store, at most")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each loader")
    parser.add_argument("--out", type=Path, help="a JSON file")
    options = parser.parse_args(arguments)
    cores = os.sched_getaffinity(0)
    with tempfile.TemporaryDirectory() as name:
        folder = options.data
        if (folder / MANIFEST).exists():
            folder = Path(name) / "lerobot"
            as_lerobot(TrainingStore(options.data), folder, options.episodes)
        size = LeRobotDataset(folder).image_size[0]
        store = convert(str(folder), Path(name) / "store", image_size=size, frame_stride=1)
        dataset = PlainDataset(folder)
        samples = require_same(store, dataset)
        torch.set_num_threads(1)
        os.sched_setaffinity(0, {min(cores)})
        try:
            found = {"samples": samples, "image_size": size, **measure(store, dataset, options.seconds)}
        finally:
            os.sched_setaffinity(0, cores)
    print(
        f"{samples} samples of {size} px, one core: ours {found['ours']:,.0f} samples/s, plain {found['plain']:,.0f} "
        f"samples/s, {found['ratio']:.1f}x (target {TARGET:g}x)"
    )
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
