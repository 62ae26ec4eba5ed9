"""Writer of LeRobot v3.0 image datasets, with the files, columns, types and metadata of the real library.

The format follows a dataset written by lerobot 0.4.4 (``tests/data/fixtures/lerobot_v30_image``).
"""

import json
import secrets
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from wmjax.core.errors import UserError
from wmjax.core.files import disk_errors, hash_json, sync
from wmjax.core.specs import ActionSpec, ObservationSpec
from wmjax.data.episode import EpisodeData, check_episode
from wmjax.data.formats.lerobot.images import encode_png
from wmjax.data.formats.lerobot.layout import Layout
from wmjax.data.formats.lerobot.stats import Stats, column_stats, count_levels, image_stats

DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
FILES_PER_CHUNK = 1000
DATA_FILE_MB = 100
VIDEO_FILE_MB = 200
SCALARS = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}


def write_lerobot_v30(
    folder: Path,
    episodes: Iterable[EpisodeData],
    spec: ObservationSpec,
    action: ActionSpec,
    *,
    layout: Layout | None = None,
    robot_type: str | None = None,
    data_file_mb: int = DATA_FILE_MB,
) -> None:
    """Writes a LeRobot v3.0 dataset of PNG images; the folder appears when it is complete.

    Args:
        folder: where; must not exist.
        episodes: with an image at every control step (``frame_stride`` 1).
        spec: of the observations.
        action: of the actions.
        layout: columns and fps label; LeRobot's own column names and the specs' cameras and rate when None.
        robot_type: for the metadata.
        data_file_mb: a data file that has grown to this size is closed after its episode.

    Raises:
        UserError: folder exists, no episodes, an episode with missing images or bad values, full disk.

    """
    folder = Path(folder).absolute()  # of a relative path, Arrow takes what stands before a colon for a file system
    if folder.exists():
        raise UserError(f"{folder}: exists already, nothing was overwritten; choose a new folder or delete it")
    staging = folder.parent / f".{folder.name}.{secrets.token_hex(4)}.tmp"
    with disk_errors(folder):
        try:
            staging.mkdir(parents=True)
            writer = _Writer(staging, spec, action, layout or plain_layout(spec), data_file_mb)
            for episode in episodes:
                writer.add(episode)
            writer.finish(robot_type)
            staging.rename(folder)
            sync(folder.parent)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def plain_layout(spec: ObservationSpec) -> Layout:
    """LeRobot's own column names, one image column per camera."""
    cameras = {camera: f"observation.images.{camera}" for camera in spec.cameras}
    return Layout("LeRobot", "observation.state", "action", cameras)


class _Writer:
    """The state of a dataset while its episodes arrive."""

    def __init__(
        self, root: Path, spec: ObservationSpec, action: ActionSpec, layout: Layout, data_file_mb: int
    ) -> None:
        self.names = {layout.state: spec.state, layout.action: action.names}
        self.fps, self.action = layout.fps_label or spec.control_hz, action
        self.root, self.layout, self.limit = root, layout, data_file_mb * 1_000_000
        self.tasks: dict[str, int] = {}
        self.rows: list[dict[str, Any]] = []
        self.columns: dict[str, list[np.ndarray]] = {}
        self.levels = {key: np.zeros((3, 256), np.int64) for key in layout.cameras.values()}
        self.size: tuple[int, int] | None = None
        self.frames, self.file = 0, 0
        self._parquet: pq.ParquetWriter | None = None

    def add(self, episode: EpisodeData) -> None:
        """Appends one episode as one row group."""
        number = len(self.rows)
        self._check(episode, number)
        task = self.tasks.setdefault(episode.meta["instruction"], len(self.tasks))
        n = episode.length
        columns = {
            self.layout.state: episode.state,
            self.layout.action: episode.action,
            "timestamp": np.arange(n) / self.fps,
            "frame_index": np.arange(n),
            "episode_index": np.full(n, number),
            "index": np.arange(self.frames, self.frames + n),
            "task_index": np.full(n, task),
        }
        path = self.root / self._path()
        path.parent.mkdir(parents=True, exist_ok=True)
        if self._parquet is None:
            self._parquet = pq.ParquetWriter(path, self._schema())
        self._parquet.write_table(self._table(episode, columns))
        self.rows.append(self._episode_row(episode, columns, number))
        for name, values in columns.items():
            self.columns.setdefault(name, []).append(values)
        self.frames += n
        if path.stat().st_size >= self.limit:
            self._close_file()

    def finish(self, robot_type: str | None) -> None:
        """Closes the data and writes the metadata."""
        if not self.rows:
            raise UserError(f"{self.root}: 0 episodes to write; record some first")
        self._close_file()
        meta = self.root / "meta"
        (meta / "episodes/chunk-000").mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(self.rows), meta / "episodes/chunk-000/file-000.parquet")
        pq.write_table(_tasks_table(list(self.tasks)), meta / "tasks.parquet")
        stats: Stats = {name: column_stats(np.concatenate(values)) for name, values in self.columns.items()}
        stats |= {key: image_stats(levels, self.frames) for key, levels in self.levels.items()}
        (meta / "stats.json").write_text(json.dumps(stats, indent=4), encoding="utf-8")
        (meta / "info.json").write_text(json.dumps(self._info(robot_type), indent=4), encoding="utf-8")

    def _check(self, episode: EpisodeData, number: int) -> None:
        """Refuses what a row-per-control-step dataset cannot hold."""
        where = f"episode {number}"
        check_episode(episode, None, self.action, where)
        if len(episode.images) != episode.length:
            raise UserError(
                f"{where}: {len(episode.images)} images for {episode.length} control steps; a LeRobot dataset needs "
                f"one per step, record with --every-step"
            )
        cameras, height, width = episode.images.shape[1:4]
        self.size = self.size or (height, width)
        if cameras != len(self.layout.cameras) or (height, width) != self.size:
            raise UserError(
                f"{where}: images are {cameras} x {height}x{width}, expected {len(self.layout.cameras)} x "
                f"{self.size[0]}x{self.size[1]}; record all episodes with the same cameras and size"
            )

    def _path(self) -> str:
        return DATA_PATH.format(chunk_index=self.file // FILES_PER_CHUNK, file_index=self.file % FILES_PER_CHUNK)

    def _close_file(self) -> None:
        if self._parquet is not None:
            self._parquet.close()
            self._parquet = None
            self.file += 1

    def _table(self, episode: EpisodeData, columns: dict[str, np.ndarray]) -> pa.Table:
        """One episode's rows."""
        schema = self._schema()
        arrays: list[pa.Array] = []
        for camera in range(len(self.layout.cameras)):
            cells = [
                {"bytes": encode_png(image), "path": f"frame-{step:06d}.png"}
                for step, image in enumerate(episode.images[:, camera])
            ]
            arrays.append(pa.array(cells, schema.types[len(arrays)]))
        for values in columns.values():
            kind = schema.types[len(arrays)]
            if values.ndim == 2:
                flat = pa.array(values.astype(np.float32).ravel())
                arrays.append(pa.FixedSizeListArray.from_arrays(flat, type=kind))
            else:
                arrays.append(pa.array(values.astype(kind.to_pandas_dtype())))
        return pa.Table.from_arrays(arrays, schema=schema)

    def _schema(self) -> pa.Schema:
        """Arrow types of the data files, with the feature list that the ``datasets`` library reads."""
        image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        fields: list[tuple[str, pa.DataType]] = [(key, image) for key in self.layout.cameras.values()]
        features: dict[str, Any] = {key: {"_type": "Image"} for key in self.layout.cameras.values()}
        for key, dim in ((key, len(names)) for key, names in self.names.items()):
            fields.append((key, pa.list_(pa.field("element", pa.float32()), dim)))
            features[key] = {"feature": {"dtype": "float32", "_type": "Value"}, "length": dim, "_type": "List"}
        for key, dtype in SCALARS.items():
            fields.append((key, pa.type_for_alias(dtype)))
            features[key] = {"dtype": dtype, "_type": "Value"}
        description = {"info": {"features": features}, "fingerprint": hash_json(features)}
        return pa.schema(fields, metadata={"huggingface": json.dumps(description)})

    def _episode_row(self, episode: EpisodeData, columns: dict[str, np.ndarray], number: int) -> dict[str, Any]:
        """The episode's row of meta/episodes, and its share of the image counts."""
        row: dict[str, Any] = {
            "episode_index": number,
            "tasks": [episode.meta["instruction"]],
            "length": episode.length,
            "data/chunk_index": self.file // FILES_PER_CHUNK,
            "data/file_index": self.file % FILES_PER_CHUNK,
            "dataset_from_index": self.frames,
            "dataset_to_index": self.frames + episode.length,
        }
        stats: dict[str, Stats] = {}
        for camera, key in enumerate(self.layout.cameras.values()):
            levels = count_levels(episode.images[:, camera])
            self.levels[key] += levels
            stats[key] = image_stats(levels, episode.length)
        stats |= {name: column_stats(values) for name, values in columns.items()}
        row |= {f"stats/{key}/{name}": value for key, found in stats.items() for name, value in found.items()}
        return row | {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}

    def _info(self, robot_type: str | None) -> dict[str, Any]:
        """meta/info.json."""
        return {
            "codebase_version": "v3.0",
            "robot_type": robot_type,
            "total_episodes": len(self.rows),
            "total_frames": self.frames,
            "total_tasks": len(self.tasks),
            "chunks_size": FILES_PER_CHUNK,
            "data_files_size_in_mb": self.limit // 1_000_000,
            "video_files_size_in_mb": VIDEO_FILE_MB,
            "fps": int(self.fps) if self.fps == int(self.fps) else self.fps,
            "splits": {"train": f"0:{len(self.rows)}"},
            "data_path": DATA_PATH,
            "video_path": None,
            "features": self._features(),
        }

    def _features(self) -> dict[str, Any]:
        image = {"dtype": "image", "shape": [*(self.size or ()), 3], "names": ["height", "width", "channel"]}
        features: dict[str, Any] = {key: image for key in self.layout.cameras.values()}
        for key, names in self.names.items():
            features[key] = {"dtype": "float32", "shape": [len(names)], "names": list(names)}
        return features | {key: {"dtype": dtype, "shape": [1], "names": None} for key, dtype in SCALARS.items()}


def _tasks_table(tasks: list[str]) -> pa.Table:
    """meta/tasks.parquet: a pandas frame with the tasks as its index, made without pandas."""
    index = "__index_level_0__"
    text = {"pandas_type": "unicode", "numpy_type": "str"}
    description = {
        "index_columns": [index],
        "column_indexes": [{"name": None, "field_name": None, **text, "metadata": {"encoding": "UTF-8"}}],
        "columns": [
            {
                "name": "task_index",
                "field_name": "task_index",
                "pandas_type": "int64",
                "numpy_type": "int64",
                "metadata": None,
            },
            {"name": None, "field_name": index, "pandas_type": "object", "numpy_type": "str", "metadata": None},
        ],
        "attributes": {},
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "3.0.0",
    }
    schema = pa.schema(
        [("task_index", pa.int64()), (index, pa.large_string())], metadata={"pandas": json.dumps(description)}
    )
    return pa.Table.from_arrays(
        [pa.array(range(len(tasks)), pa.int64()), pa.array(tasks, pa.large_string())], schema=schema
    )
