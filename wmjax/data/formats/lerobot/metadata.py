"""What ``meta/`` of a LeRobot dataset says, read as typed values: info, tasks, and where the episodes lie."""

import dataclasses
import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from wmjax.core.errors import UserError
from wmjax.core.paths import listed
from wmjax.core.reading import parquet_columns, read_json, read_json_lines, read_parquet, reading, typed
from wmjax.core.settings import Range

VERSIONS = ("v2.0", "v2.1", "v3.0")
FIX = "download the dataset again, or repair it"
Index = Annotated[int, Range(0, 1_000_000_000)]


@dataclasses.dataclass(frozen=True)
class Feature:
    """A column as ``info.json`` describes it: ``shape`` of a row and the ``names`` of its axes or values."""

    dtype: str
    shape: tuple[Annotated[int, Range(0, 1_000_000)], ...] | None = None
    names: Any = None
    info: Any = None
    video_info: Any = None


@dataclasses.dataclass(frozen=True)
class Info:
    """``meta/info.json``, as far as it is used; its other keys are ignored."""

    codebase_version: str
    fps: Annotated[float, Range(0, 10_000, above=True)]
    data_path: str
    features: dict[str, Feature]
    chunks_size: Annotated[int, Range(1, 1_000_000_000)] = 1000
    video_path: str | None = None
    total_episodes: Index | None = None
    total_frames: Index | None = None


@dataclasses.dataclass(frozen=True)
class VideoPlace:
    """An episode's part of an MP4: where it begins in it, and how long it is, both in seconds.

    ``frames`` are those of the whole file where it is one episode's; None where the place in it is given.
    """

    path: Path
    start: float
    seconds: float
    frames: int | None = None


@dataclasses.dataclass(frozen=True)
class EpisodeEntry:
    """An episode as the metadata lists it: its rows' parquet file, and its part of an MP4 per video column."""

    index: int
    length: int
    data: Path
    videos: dict[str, VideoPlace]


@dataclasses.dataclass(frozen=True)
class _Line:
    episode_index: Index
    length: Index


@dataclasses.dataclass(frozen=True)
class _TaskLine:
    task_index: int
    task: str


def read_info(folder: Path) -> Info:
    """``meta/info.json`` of a dataset.

    Raises:
        UserError: no dataset there, damaged metadata, or a version that cannot be read.

    """
    path = folder / "meta/info.json"
    if not path.exists():
        raise UserError(f"{folder}: no LeRobot dataset there (meta/info.json is missing); check the path")
    version = read_json(path, dict[str, Any], FIX).get("codebase_version")
    if version not in VERSIONS:
        raise UserError(f"{folder}: codebase_version is {version!r}, readable are {', '.join(VERSIONS)}; convert it")
    return read_json(path, Info, FIX)


def height_and_width(info: Info, column: str, where: str) -> tuple[int, int]:
    """Of an image column, by the names of its axes; without names, three channels come last unless they come first.

    Raises:
        UserError: no shape, or one that no colour image has.

    """
    feature = info.features[column]
    shape, names = feature.shape, feature.names
    if shape is None or len(shape) != 3 or min(shape) < 1:
        raise UserError(f"{where}: features[{column!r}].shape is {shape}; give height, width and channels, or {FIX}")
    place = _axes(shape, names)
    if holds_depth(feature):
        channels = shape[3 - sum(place)]
        raise UserError(f"{where}: {column} has {channels} channels or holds depth; choose a layout of colour cameras")
    return shape[place[0]], shape[place[1]]


def holds_depth(feature: Feature) -> bool:
    """Whether an image column is no colour camera's: another number of channels than 3, or marked as depth."""
    described = {**(feature.info if isinstance(feature.info, dict) else {})}
    described |= feature.video_info if isinstance(feature.video_info, dict) else {}
    if described.get("video.is_depth_map") or described.get("is_depth_map"):
        return True
    shape = feature.shape
    return shape is not None and len(shape) == 3 and shape[3 - sum(_axes(shape, feature.names))] != 3


def _axes(shape: Sequence[int], names: object) -> tuple[int, int]:
    """The axes of height and width."""
    if isinstance(names, list) and len(names) == 3 and {"height", "width"} <= {str(name) for name in names}:
        return names.index("height"), names.index("width")
    return (1, 2) if shape[0] == 3 != shape[-1] else (0, 1)


def read_tasks(folder: Path, version: str) -> dict[int, str]:
    """The instruction of each task index.

    Raises:
        UserError: damaged metadata, an index with two instructions, or a table in which nothing says which column is
            the task.

    """
    if version != "v3.0":
        path = folder / "meta/tasks.jsonl"
        return _by_index(read_json_lines(path, _TaskLine, FIX), path)
    path = folder / "meta/tasks.parquet"
    names = parquet_columns(path, FIX)
    column = _task_column(path, names)
    table = read_parquet(path, ["task_index", column], FIX)
    rows = zip(table["task_index"].to_pylist(), table[column].to_pylist(), strict=True)
    return _by_index((typed({"task_index": i, "task": t}, _TaskLine, str(path), FIX) for i, t in rows), path)


def _by_index(lines: Iterable[_TaskLine], path: Path) -> dict[int, str]:
    tasks: dict[int, str] = {}
    for line in lines:
        if tasks.setdefault(line.task_index, line.task) != line.task:
            both = f"{tasks[line.task_index]!r} and {line.task!r}"
            raise UserError(f"{path}: task_index {line.task_index} is both {both}; {FIX}")
    return tasks


def _task_column(path: Path, names: list[str]) -> str:
    """The column of the instructions: the table's pandas index, else ``task``, else the only other one."""
    with reading(path, FIX), pq.ParquetFile(path.absolute()) as file:
        text = (file.schema_arrow.metadata or {}).get(b"pandas", b"{}")
        index = json.loads(text).get("index_columns", [])
    others = [name for name in names if name != "task_index"]
    known = [name for name in (*index, "__index_level_0__", "task") if isinstance(name, str) and name in others]
    if "task_index" not in names or not (known or len(others) == 1):
        raise UserError(f"{path}: columns are {names}, expected task_index and the task; name the latter 'task'")
    return known[0] if known else others[0]


def read_episodes(folder: Path, info: Info, video_keys: list[str]) -> list[EpisodeEntry]:
    """The episodes that the metadata lists, by index.

    Raises:
        UserError: damaged metadata, no episode, one that is listed twice.

    """
    if video_keys and info.video_path is None:
        raise UserError(f"{folder}/meta/info.json: video_path is null, but {video_keys[0]} is a video; {FIX}")
    read = _episodes_v3 if info.codebase_version == "v3.0" else _episodes_v2
    entries = sorted(read(folder, info, video_keys), key=lambda entry: entry.index)
    if not entries:
        raise UserError(f"{folder}/meta: no episodes are listed; {FIX}")
    for one, other in itertools.pairwise(entries):
        if one.index == other.index:
            raise UserError(f"{folder}/meta: episode {one.index} is listed twice; {FIX}")
    return entries


def _episodes_v2(folder: Path, info: Info, video_keys: list[str]) -> list[EpisodeEntry]:
    entries = []
    for line in read_json_lines(folder / "meta/episodes.jsonl", _Line, FIX):
        index = line.episode_index
        place = {"episode_chunk": index // info.chunks_size, "episode_index": index}
        videos = {
            key: VideoPlace(
                _path(folder, info.video_path or "", video_key=key, **place), 0.0, line.length / info.fps, line.length
            )
            for key in video_keys
        }
        entries.append(EpisodeEntry(index, line.length, _path(folder, info.data_path, **place), videos))
    return entries


def _episodes_v3(folder: Path, info: Info, video_keys: list[str]) -> list[EpisodeEntry]:
    files = listed(folder / "meta/episodes", "*/*.parquet")
    if not files:
        raise UserError(f"{folder}/meta/episodes: no parquet files; {FIX}")
    columns = ["episode_index", "length", "data/chunk_index", "data/file_index"]
    for key in video_keys:
        columns += [f"videos/{key}/{name}" for name in ("chunk_index", "file_index", "from_timestamp")]
    entries = []
    for file in files:
        ends = [f"videos/{key}/to_timestamp" for key in video_keys]
        known = parquet_columns(file, FIX)
        rows = read_parquet(file, [*columns, *(name for name in ends if name in known)], FIX).to_pylist()
        entries += [_entry_v3(folder, info, video_keys, row, str(file)) for row in rows]
    return entries


def _entry_v3(folder: Path, info: Info, video_keys: list[str], row: dict[str, Any], where: str) -> EpisodeEntry:
    line = typed(row, _Line, where, FIX)

    def place(prefix: str) -> dict[str, int]:
        """The two numbers in a file's name."""
        return {name: typed(row[f"{prefix}/{name}"], Index, where, FIX) for name in ("chunk_index", "file_index")}

    videos = {}
    for key in video_keys:
        path = _path(folder, info.video_path or "", video_key=key, **place(f"videos/{key}"))
        start = typed(row[f"videos/{key}/from_timestamp"], float, where, FIX)
        end = typed(row.get(f"videos/{key}/to_timestamp"), float | None, where, FIX)
        seconds = line.length / info.fps if end is None else end - start
        videos[key] = VideoPlace(path, start, seconds)
    return EpisodeEntry(line.episode_index, line.length, _path(folder, info.data_path, **place("data")), videos)


def _path(folder: Path, template: str, **place: Any) -> Path:
    """A file's path from its template in ``info.json``."""
    try:
        return folder / template.format(**place)
    except (LookupError, ValueError, AttributeError, TypeError, MemoryError) as error:
        raise UserError(
            f"{folder}/meta/info.json: the path {template!r} does not fit {', '.join(place)} ({error}); {FIX}"
        ) from error


def clock_faults(entries: list[EpisodeEntry]) -> dict[int, str]:
    """Episodes whose start in an MP4 does not follow from those before it, by index, and what is wrong.

    Episodes follow each other without a gap; where some are not listed, the gap is of whole frames. A start that
    drifts away from that shows other rows' frames.
    """
    faults: dict[int, str] = {}
    places: dict[Path, list[tuple[float, EpisodeEntry, VideoPlace]]] = {}
    for entry in entries:
        for place in entry.videos.values():
            places.setdefault(place.path, []).append((place.start, entry, place))
    for path, uses in places.items():
        end, before = 0.0, -1
        for start, entry, place in sorted(uses, key=lambda item: item[:1]):
            rate = entry.length / place.seconds if place.seconds > 0 else 0.0
            gap = (start - end) * rate
            due = before >= 0 and entry.index == before + 1
            if not rate or gap < -0.25 or abs(gap - round(gap)) > 0.1 or (due and abs(gap) > 0.25):
                faults[entry.index] = (
                    f"{path}: episode {entry.index} starts at {start:.3f} s, {gap:+.2f} frames from the end of the one "
                    "before; correct from_timestamp and to_timestamp in meta/episodes"
                )
            end, before = start + place.seconds, entry.index
    return faults


class DataFiles:
    """Which data files of a v3.0 dataset hold which episodes, by the rows themselves.

    ``data/file_index`` of the metadata is stale in published datasets: converters wrote it before they began the next
    file. A file that cannot be read is remembered and reported for the episodes that are found nowhere else.
    """

    def __init__(self, folder: Path) -> None:
        self.rows: dict[int, dict[Path, int]] = {}
        self.fault: UserError | None = None
        for path in listed(folder / "data", "**/*.parquet"):
            try:
                self._add(path)
            except UserError as error:
                self.fault = self.fault or error

    def _add(self, path: Path) -> None:
        column = read_parquet(path, ["episode_index"], FIX)["episode_index"]
        if not pa.types.is_integer(column.type) or column.null_count:
            raise UserError(f"{path}: episode_index is {column.type} with {column.null_count} nulls; {FIX}")
        with reading(path, FIX):
            indices, counts = np.unique(column.to_numpy(), return_counts=True)
        for index, count in zip(indices.tolist(), counts.tolist(), strict=True):
            self.rows.setdefault(index, {})[path] = count

    def length(self, index: int) -> int:
        """Rows of an episode, wherever they are."""
        return sum(self.rows.get(index, {}).values())

    def files(self, entry: EpisodeEntry) -> list[Path]:
        """The files with an episode's rows.

        Raises:
            UserError: there are none.

        """
        found = list(self.rows.get(entry.index, {}))
        if found or not entry.length:
            return found
        raise self.fault or UserError(f"{entry.data}: no data file has rows of episode {entry.index}; {FIX}")
