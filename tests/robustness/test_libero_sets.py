"""The public LIBERO sets by their shape: 1,693 episodes in many files, stale indices, two episodes that are not listed.

The images are tiny and one file's worth, the metadata are as large as those of the real sets.
"""

import json
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.robustness import sources
from tests.robustness.sources import CAMERAS, FPS
from wmjax.data.formats.lerobot.convert import convert
from wmjax.data.formats.lerobot.dataset import LeRobotDataset

EPISODES, TASKS, FILES = 1693, 40, 377
LENGTH = 6
UNLISTED = (700, 1500)


def write_set(root: Path) -> Path:
    """v3.0 with images in parquet; ``data/file_index`` is that of the file before the roll-over for every first one."""
    for folder in ("meta/episodes/chunk-000", "data/chunk-000"):
        (root / folder).mkdir(parents=True)
    picture = sources.png(sources.frames(1)[0])
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = pa.array([{"bytes": picture, "path": "x.png"}] * LENGTH, image)
    files = np.sort(np.arange(EPISODES) * FILES // EPISODES)
    listed, writers = [], {}
    for index in range(EPISODES):
        columns = {camera: cells for camera in CAMERAS}
        table = sources.rows(index, LENGTH, index * LENGTH, video=True, task=index % TASKS)
        table = pa.table({**columns, **dict(zip(table.column_names, table.columns, strict=True))})
        file = int(files[index])
        if file not in writers:
            writers[file] = pq.ParquetWriter(root / f"data/chunk-000/file-{file:03d}.parquet", table.schema)
        writers[file].write_table(table)
        stale = file - int(index > 0 and files[index - 1] != file)
        if index not in UNLISTED:
            place = {"data/chunk_index": 0, "data/file_index": stale}
            listed.append({"episode_index": index, "length": LENGTH, "tasks": [f"task {index % TASKS}"], **place})
    for writer in writers.values():
        writer.close()
    half = len(listed) // 2
    for number, part in enumerate((listed[:half], listed[half:])):
        pq.write_table(pa.Table.from_pylist(part), root / f"meta/episodes/chunk-000/file-{number:03d}.parquet")
    names = pa.table({"task_index": list(range(TASKS)), "__index_level_0__": [f"do task {i}" for i in range(TASKS)]})
    pq.write_table(names, root / "meta/tasks.parquet")
    info = {
        "codebase_version": "v3.0", "total_episodes": EPISODES, "total_frames": EPISODES * LENGTH, "chunks_size": 1000,
        "fps": FPS, "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet", "video_path": None,
        "features": sources.features(video=False), "splits": {"train": f"0:{EPISODES}"}, "robot_type": "panda",
    }  # fmt: skip
    (root / "meta/info.json").write_text(json.dumps(info), encoding="utf-8")
    return root


@pytest.mark.slow
def test_the_whole_set_is_imported(tmp_path):
    source = write_set(tmp_path / "libero")
    started = time.monotonic()
    dataset = LeRobotDataset(source)
    opened = time.monotonic() - started
    assert [entry.index for entry in dataset.episodes] == list(range(EPISODES))
    store = convert(str(source), tmp_path / "store", image_size=sources.SIZE)
    print(f"opened in {opened:.1f} s, imported in {time.monotonic() - started:.1f} s")
    assert len(store.episodes) == EPISODES and len(store.state) == EPISODES * LENGTH
    assert len(store.tasks) == TASKS and {task.instruction for task in store.tasks} == {
        f"do task {i}" for i in range(TASKS)
    }
    for index in (0, 5, 700, 1692):
        table = sources.rows(index, LENGTH, 0, video=True)
        expected = np.asarray(table["action"].to_pylist(), np.float32)
        assert np.array_equal(store.episode(index).action, expected)
