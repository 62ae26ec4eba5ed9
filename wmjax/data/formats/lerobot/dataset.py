"""Reader of LeRobot datasets v2.0, v2.1 and v3.0 in a local folder, image or video variant.

The format was taken from datasets that the real library wrote (see ``tests/data/fixtures``).
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Float32, UInt8

from wmjax.core.errors import UserError
from wmjax.data.formats.lerobot.images import decode_image, decode_video, stack_images
from wmjax.data.formats.lerobot.layout import Layout, choose_layout, require_columns

VERSIONS = ("v2.0", "v2.1", "v3.0")
INFO_KEYS = ("features", "fps", "data_path", "video_path", "chunks_size")


@dataclasses.dataclass(frozen=True)
class EpisodeEntry:
    """The place of an episode: its rows' parquet file and, per video column, the MP4 and the start in it (s)."""

    index: int
    length: int
    data: Path
    videos: dict[str, tuple[Path, float]]


@dataclasses.dataclass(frozen=True)
class EpisodeColumns:
    """The low-dimensional columns of an episode, one row per control step."""

    state: Float32[np.ndarray, "n state"]
    action: Float32[np.ndarray, "n action"]
    task_index: int
    instruction: str


class LeRobotDataset:
    """A LeRobot dataset on disk.

    Args:
        folder: the dataset's root, holding ``meta/info.json``.
        layout: which column is which; chosen by the columns and how images are stored when None.

    Raises:
        UserError: no dataset there, unknown version, missing columns or damaged metadata.

    """

    def __init__(self, folder: Path, layout: Layout | None = None) -> None:
        self.folder = Path(folder)
        self.info = self._json("meta/info.json")
        self.version = self.info.get("codebase_version")
        if self.version not in VERSIONS:
            raise UserError(
                f"{self.folder}: codebase_version is {self.version!r}, wmjax reads {', '.join(VERSIONS)}; convert it"
            )
        for key in INFO_KEYS:
            if key not in self.info:
                raise UserError(f"{self.folder}/meta/info.json: {key!r} is missing; download the dataset again")
        self.features: dict[str, Any] = self.info["features"]
        if layout is None:
            layout = choose_layout(self.features, str(self.folder))
        else:
            require_columns(layout, self.features, str(self.folder))
        self.layout = layout
        self.fps = float(self.info["fps"])
        self.tasks = self._tasks_v3() if self.version == "v3.0" else self._tasks_v2()
        self.episodes = self._episodes_v3() if self.version == "v3.0" else self._episodes_v2()

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width that the metadata promises for every camera, whatever the order of its axes."""
        sizes = {_height_and_width(self.features[key]) for key in self.layout.cameras.values()}
        if len(sizes) > 1:
            raise UserError(f"{self.folder}: cameras have different sizes {sorted(sizes)}; resize them to one size")
        return sizes.pop()

    @property
    def state_dim(self) -> int:
        """Values of a state, as the metadata promises."""
        return int(self.features[self.layout.state]["shape"][0])

    @property
    def action_dim(self) -> int:
        """Values of an action, as the metadata promises."""
        return int(self.features[self.layout.action]["shape"][0])

    def columns(self, entry: EpisodeEntry) -> EpisodeColumns:
        """State, action and instruction of an episode.

        Raises:
            UserError: truncated file, rows that do not fit the metadata, no or several instructions.

        """
        names = [self.layout.state, self.layout.action, "frame_index", "task_index"]
        table = self._rows(entry, names)
        where = f"{entry.data}: episode {entry.index}"
        if table["frame_index"].to_pylist() != list(range(entry.length)):
            raise UserError(f"{where}: frame_index does not count from 0 to {entry.length - 1}; repair the dataset")
        tasks = set(table["task_index"].to_pylist())
        if len(tasks) != 1 or not tasks <= set(self.tasks):
            raise UserError(
                f"{where}: task_index is {sorted(tasks, key=str)}, expected one of {sorted(self.tasks)} for the whole "
                f"episode; every episode needs an instruction"
            )
        task = tasks.pop()
        state, action = (self._matrix(table, name, where) for name in names[:2])
        return EpisodeColumns(state, action, task, self.tasks[task])

    def images(self, entry: EpisodeEntry, rows: np.ndarray) -> UInt8[np.ndarray, "n cameras height width 3"]:
        """Images of an episode at some control steps (increasing), cameras in the layout's order.

        Raises:
            UserError: missing, damaged or truncated images, or of another size than the metadata's.

        """
        return np.stack([self._camera(entry, key, rows) for key in self.layout.cameras.values()], axis=1)

    def _camera(self, entry: EpisodeEntry, key: str, rows: np.ndarray) -> np.ndarray:
        if key in entry.videos:
            path, start = entry.videos[key]
            return stack_images(decode_video(path, start + rows / self.fps, self.fps), self.image_size, str(path))
        where = f"{entry.data}: episode {entry.index} {key}"
        cells = self._rows(entry, [key])[key].take(pa.array(rows)).to_pylist()
        images = [decode_image((cell or {}).get("bytes"), where) for cell in cells]
        return stack_images(images, self.image_size, where)

    def _rows(self, entry: EpisodeEntry, names: list[str]) -> pa.Table:
        """Some columns of one episode's rows, in the order of the file."""
        table = read_parquet(entry.data, names, entry.index)
        if table.num_rows != entry.length:
            raise UserError(
                f"{entry.data}: episode {entry.index} has {table.num_rows} rows, meta says {entry.length}; "
                f"download the dataset again"
            )
        return table

    def _matrix(self, table: pa.Table, name: str, where: str) -> np.ndarray:
        """A list column as float32 [n, dim]."""
        column = table[name].combine_chunks()
        dim = self.features[name]["shape"][0]
        flat = column.flatten() if not column.null_count else None
        if flat is None or flat.null_count or len(flat) != table.num_rows * dim:
            raise UserError(f"{where}: {name} is not {dim} numbers in every row; repair or drop the episode")
        return flat.to_numpy(zero_copy_only=False).astype(np.float32).reshape(-1, dim)

    def _tasks_v3(self) -> dict[int, str]:
        table = read_parquet(self.folder / "meta/tasks.parquet")
        texts = [name for name in table.column_names if name != "task_index"]
        if "task_index" not in table.column_names or not texts:
            raise UserError(f"{self.folder}/meta/tasks.parquet: needs columns task_index and the task; repair it")
        return dict(zip(table["task_index"].to_pylist(), table[texts[0]].to_pylist(), strict=True))

    def _tasks_v2(self) -> dict[int, str]:
        return {line["task_index"]: line["task"] for line in self._jsonl("meta/tasks.jsonl", ("task_index", "task"))}

    def _episodes_v3(self) -> list[EpisodeEntry]:
        files = sorted((self.folder / "meta/episodes").glob("*/*.parquet"))
        if not files:
            raise UserError(f"{self.folder}/meta/episodes: no parquet files; download the dataset again")
        entries = []
        for file in files:
            names = [name for name in pq.ParquetFile(file).schema_arrow.names if not name.startswith("stats/")]
            entries += [self._entry_v3(row, file) for row in read_parquet(file, names).to_pylist()]
        return sorted(entries, key=lambda entry: entry.index)

    def _entry_v3(self, row: dict[str, Any], file: Path) -> EpisodeEntry:
        try:
            data = self.info["data_path"].format(chunk_index=row["data/chunk_index"], file_index=row["data/file_index"])
            videos = {}
            for key in self._video_keys():
                place = {name: row[f"videos/{key}/{name}"] for name in ("chunk_index", "file_index")}
                path = self.folder / self.info["video_path"].format(video_key=key, **place)
                videos[key] = (path, float(row[f"videos/{key}/from_timestamp"]))
            return EpisodeEntry(row["episode_index"], row["length"], self.folder / data, videos)
        except KeyError as error:
            raise UserError(f"{file}: column {error} is missing; download the dataset again") from error

    def _episodes_v2(self) -> list[EpisodeEntry]:
        entries = []
        for line in self._jsonl("meta/episodes.jsonl", ("episode_index", "length")):
            index = line["episode_index"]
            place = {"episode_chunk": index // self.info["chunks_size"], "episode_index": index}
            videos = {
                key: (self.folder / self.info["video_path"].format(video_key=key, **place), 0.0)
                for key in self._video_keys()
            }
            data = self.folder / self.info["data_path"].format(**place)
            entries.append(EpisodeEntry(index, line["length"], data, videos))
        return entries

    def _video_keys(self) -> list[str]:
        return [key for key in self.layout.cameras.values() if self.features[key]["dtype"] == "video"]

    def _json(self, name: str) -> dict[str, Any]:
        try:
            content = json.loads((self.folder / name).read_text())
        except FileNotFoundError as error:
            raise UserError(f"{self.folder}: no LeRobot dataset there ({name} is missing); check the path") from error
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{self.folder / name}: not valid JSON ({error}); download the dataset again") from error
        if not isinstance(content, dict):
            raise UserError(f"{self.folder / name}: not a JSON object; download the dataset again")
        return content

    def _jsonl(self, name: str, keys: tuple[str, ...]) -> list[dict[str, Any]]:
        path = self.folder / name
        try:
            lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        except FileNotFoundError as error:
            raise UserError(f"{path}: missing; download the dataset again") from error
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: not valid JSON lines ({error}); download the dataset again") from error
        for number, line in enumerate(lines):
            if missing := [key for key in keys if key not in line]:
                raise UserError(f"{path}: line {number + 1} has no {', '.join(missing)}; repair the dataset")
        return lines


def _height_and_width(feature: dict[str, Any]) -> tuple[int, int]:
    """Of an image feature, by the names of its axes; without names, three channels come last unless they come first."""
    shape, names = feature["shape"], feature.get("names")
    if isinstance(names, list) and {"height", "width"} <= set(names):
        return int(shape[names.index("height")]), int(shape[names.index("width")])
    first = 1 if shape[0] == 3 != shape[-1] else 0
    return int(shape[first]), int(shape[first + 1])


def read_parquet(path: Path, names: list[str] | None = None, episode: int | None = None) -> pa.Table:
    """Columns of a parquet file, of one episode when asked for (row groups without it are not read).

    Raises:
        UserError: missing, truncated or damaged file, or a column that is not in it.

    """
    try:
        with pq.ParquetFile(path) as file:
            wanted = list(names) if names is not None else file.schema_arrow.names
            if episode is not None:
                wanted = [*wanted, "episode_index"]
            if missing := sorted(set(wanted) - set(file.schema_arrow.names)):
                raise UserError(f"{path}: columns {', '.join(missing)} are missing; repair the dataset")
            if episode is None:
                return file.read(wanted)
            table = file.read_row_groups(_groups(file, episode), wanted)
    except FileNotFoundError as error:
        raise UserError(f"{path}: missing; download the dataset again") from error
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: truncated or damaged ({error}); download the dataset again") from error
    return table.filter(pc.equal(table["episode_index"], episode))


def _groups(file: pq.ParquetFile, episode: int) -> list[int]:
    """The row groups that may hold an episode, by their statistics."""
    leaves = [file.metadata.schema.column(i).path for i in range(file.metadata.num_columns)]
    column = leaves.index("episode_index")
    groups = []
    for number in range(file.metadata.num_row_groups):
        statistics = file.metadata.row_group(number).column(column).statistics
        if statistics is None or not statistics.has_min_max or statistics.min <= episode <= statistics.max:
            groups.append(number)
    return groups
