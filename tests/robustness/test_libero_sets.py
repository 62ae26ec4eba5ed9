"""The public LIBERO sets by their shape: 1,693 episodes in several files, stale indices, two that are not listed.

The images are tiny. Episodes have six rows on average, where those of the real sets have 162; a long test has as many.
"""

import json
import logging
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.robustness import sources
from tests.robustness.sources import CAMERAS, FPS, shown_rows
from wmjax.data.formats.lerobot.convert import convert
from wmjax.data.formats.lerobot.dataset import LeRobotDataset

EPISODES, TASKS, FEW_ROWS, REAL_ROWS = 1693, 40, 10_158, 273_465
UNLISTED = (700, 1500)
SETS = {"HuggingFaceVLA/libero": (377, 0), "lerobot/libero": (3, 5)}
"""Files of rows, and of each camera's video: the first set has its images in the rows."""
SHADES = 60
"""Row k of an episode shows the picture k modulo this."""


def episode_lengths(rows: int) -> np.ndarray:
    """Rows of each episode, as different as those of the real sets."""
    ends = np.linspace(0, rows, EPISODES + 1).astype(int)
    spread = rows // EPISODES // 3
    uneven = ends[1:-1] + np.random.default_rng(0).integers(-spread, spread + 1, EPISODES - 1)
    return np.diff(np.concatenate([[0], uneven, [rows]]))


def table_of(index: int, length: int, start: int, cells: pa.Array | None) -> pa.Table:
    """An episode's rows, its images among them if there are cells."""
    table = sources.rows(index, length, start, video=True, task=index % TASKS)
    if cells is None:
        return table
    images = cells.take(pa.array(np.arange(length) % SHADES))
    return pa.table({**dict.fromkeys(CAMERAS, images), **dict(zip(table.column_names, table.columns, strict=True))})


def write_rows(root: Path, lengths: np.ndarray, files: np.ndarray, cells: pa.Array | None) -> None:
    """The data files, one row group each, as the converter to v3.0 leaves them."""
    (root / "data/chunk-000").mkdir(parents=True)
    starts = np.cumsum(lengths) - lengths
    for file in range(files[-1] + 1):
        own = np.flatnonzero(files == file)
        parts = [table_of(int(i), int(lengths[i]), int(starts[i]), cells) for i in own]
        table = pa.concat_tables(parts)
        pq.write_table(table, root / f"data/chunk-000/file-{file:03d}.parquet", row_group_size=table.num_rows)


def write_videos(root: Path, lengths: np.ndarray, files: np.ndarray) -> Iterator[dict[str, Any]]:
    """The videos of both cameras; yields where each episode's are."""
    for file in range(files[-1] + 1):
        own = lengths[files == file]
        shown = np.concatenate([np.arange(length) % SHADES for length in own])
        images = np.broadcast_to(
            (10 + sources.STEP * shown).astype(np.uint8)[:, None, None, None], (len(shown), *[sources.SIZE] * 2, 3)
        )
        first, second = (root / f"videos/{camera}/chunk-000/file-{file:03d}.mp4" for camera in CAMERAS)
        sources.write_mp4(first, images)
        second.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(first, second)
        for start, length in zip(np.cumsum(own) - own, own, strict=True):
            place = {"chunk_index": 0, "file_index": file, "from_timestamp": start / FPS}
            place["to_timestamp"] = (start + length) / FPS
            yield {f"videos/{camera}/{name}": value for camera in CAMERAS for name, value in place.items()}


def write_set(root: Path, name: str, rows: int) -> Path:
    """A set in v3.0; ``data/file_index`` is that of the file before the roll-over for every first episode of a file."""
    (root / "meta/episodes/chunk-000").mkdir(parents=True)
    lengths, (data_files, video_files) = episode_lengths(rows), SETS[name]
    files = np.arange(EPISODES) * data_files // EPISODES
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    shades = [{"bytes": sources.png(image), "path": "x.png"} for image in sources.frames(SHADES)]
    write_rows(root, lengths, files, None if video_files else pa.array(shades, kind))
    places = (
        list(write_videos(root, lengths, np.arange(EPISODES) * video_files // EPISODES))
        if video_files
        else [{} for _ in lengths]
    )
    listed = []
    for index, place in enumerate(places):
        stale = int(files[index]) - int(index > 0 and files[index - 1] != files[index])
        row = {"episode_index": index, "length": int(lengths[index]), "tasks": [f"do task {index % TASKS}"]}
        listed.append(row | {"data/chunk_index": 0, "data/file_index": stale} | place)
    listed = [row for row in listed if row["episode_index"] not in UNLISTED]
    half = len(listed) // 2
    for number, part in enumerate((listed[:half], listed[half:])):
        pq.write_table(pa.Table.from_pylist(part), root / f"meta/episodes/chunk-000/file-{number:03d}.parquet")
    names = pa.table({"task_index": list(range(TASKS)), "__index_level_0__": [f"do task {i}" for i in range(TASKS)]})
    pq.write_table(names, root / "meta/tasks.parquet")
    info = {
        "codebase_version": "v3.0", "total_episodes": EPISODES, "total_frames": rows, "total_tasks": TASKS,
        "chunks_size": 1000, "fps": float(FPS), "robot_type": "panda", "splits": {"train": f"0:{EPISODES}"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": sources.features(video=bool(video_files)),
    }  # fmt: skip
    (root / "meta/info.json").write_text(json.dumps(info), encoding="utf-8")
    return root


@pytest.mark.slow
# As many rows as the real sets have take minutes.
@pytest.mark.parametrize("rows", [FEW_ROWS, pytest.param(REAL_ROWS, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", ["HuggingFaceVLA/libero", pytest.param("lerobot/libero", marks=pytest.mark.long)])
def test_the_whole_set_is_imported(
    name: str, rows: int, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wmjax.core.files.sync", lambda _: None)  # of each episode; power failures are not asked
    source, lengths = write_set(tmp_path / "libero", name, rows), episode_lengths(rows)
    # Where an episode begins in a video only the list says; rows of images are found without it.
    expected = [i for i in range(EPISODES) if i not in UNLISTED or not SETS[name][1]]
    with caplog.at_level(logging.WARNING, "wmjax"):
        started, worked = time.monotonic(), time.process_time()
        dataset = LeRobotDataset(source)
        opened = time.monotonic() - started
        assert [entry.index for entry in dataset.episodes] == expected
        store = convert(str(source), tmp_path / "store", image_size=sources.SIZE)
        imported, worked = time.monotonic() - started, time.process_time() - worked
    print(f"{name}, {rows:,} rows: opened in {opened:.1f} s, imported in {imported:.1f} s, {worked:.1f} s of CPU")
    said = "1691 of 1693 episodes; 2 more are in the data files" if len(expected) == EPISODES else "1693 episodes, 1691"
    assert said in caplog.text
    assert [entry["source_episode"] for entry in store.episodes] == expected
    assert len(store.state) == lengths[expected].sum()
    assert {task.instruction for task in store.tasks} == {f"do task {i}" for i in range(TASKS)}
    for place in (0, 5, 700, 1000, len(expected) - 1):
        index, episode, entry = expected[place], store.episode(place), store.episodes[place]
        table = sources.rows(index, int(lengths[index]), 0, video=True)
        assert np.array_equal(episode.action, np.asarray(table["action"].to_pylist(), np.float32))
        span = slice(entry["frame_start"], entry["frame_start"] + entry["num_frames"])
        pictures = np.asarray(store.frame_step[span]) % SHADES
        assert np.abs(np.array(shown_rows(store.frames[span])) - pictures).max() == 0
