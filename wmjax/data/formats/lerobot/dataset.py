"""Reader of LeRobot datasets v2.0, v2.1 and v3.0 in a local folder, image or video variant.

The format was taken from datasets that the real library wrote (see ``tests/data/fixtures``).
"""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float32, Float64, Int64, UInt8

from wmjax.core.errors import UserError
from wmjax.core.reading import read_parquet, reading
from wmjax.data.formats.lerobot.images import decode_image, decode_video, stack_images
from wmjax.data.formats.lerobot.layout import Layout, choose_layout, require_columns, video_layout
from wmjax.data.formats.lerobot.metadata import (
    FIX,
    DataFiles,
    EpisodeEntry,
    Feature,
    clock_faults,
    height_and_width,
    holds_depth,
    read_episodes,
    read_info,
    read_tasks,
)
from wmjax.sim.environment import ENVIRONMENTS

__all__ = ["EpisodeColumns", "EpisodeEntry", "LeRobotDataset"]

SKIP = "repair it, or leave such episodes out with --skip-bad"
SAME_RATE = 0.01
"""Relative difference up to which two rates are one."""
STEADY = 0.25
"""How far two control steps may lie from the usual interval, as a share of it, before a row is missing."""


@dataclasses.dataclass(frozen=True)
class EpisodeColumns:
    """The low-dimensional columns of an episode, one row per control step; ``task_index`` is a key of ``tasks``."""

    state: Float32[np.ndarray, "n state"]
    action: Float32[np.ndarray, "n action"]
    task_index: Int64[np.ndarray, " n"]


class LeRobotDataset:
    """A LeRobot dataset on disk.

    Args:
        folder: the dataset's root, holding ``meta/info.json``.
        layout: which column is which; chosen by the columns and how images are stored when None.
        cameras: of a dataset of which only the video is read, our names of the cameras that are needed; states and
            actions may then be missing. None: everything is read.

    Raises:
        UserError: no dataset there, unknown version, missing columns, an unknown rate or damaged metadata.

    """

    def __init__(self, folder: Path, layout: Layout | None = None, cameras: Sequence[str] | None = None) -> None:
        self.folder = Path(folder)
        self.info = read_info(self.folder)
        self.version = self.info.codebase_version
        self.features = self.info.features
        features, where = _as_mappings(self.features), str(self.folder)
        if layout is None:
            features = self._without_depth(features)
            layout = choose_layout(features, where) if cameras is None else video_layout(features, cameras, where)
        require_columns(layout, self.features, where, video_only=cameras is not None)
        self.layout = layout
        self.fps = self.info.fps
        self._require_rate(self.fps, "fps of meta/info.json")
        self.tasks = read_tasks(self.folder, self.version)
        self.episodes = read_episodes(self.folder, self.info, self._video_keys())
        self.data_files = DataFiles(self.folder) if self.version == "v3.0" else None
        self._clock_faults = clock_faults(self.episodes) if self.version == "v3.0" else {}
        self._check_totals()

    def _without_depth(self, features: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Leaves columns of depth out, and says so; all of them stay if no camera of colours is beside them."""
        images = {key for key, feature in features.items() if feature.get("dtype") in ("image", "video")}
        depth = {key for key in images if holds_depth(self.features[key])}
        if not depth or depth == images:
            return features
        text = "%s: %s: no colour images (depth), left out"
        logging.getLogger("wmjax").warning(text, self.folder, ", ".join(sorted(depth)))
        return {key: feature for key, feature in features.items() if key not in depth}

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width that the metadata promises for every camera, whatever the order of its axes.

        Raises:
            UserError: cameras of different sizes, not square, or not of colour images.

        """
        where = f"{self.folder}/meta/info.json"
        sizes = {height_and_width(self.info, key, where) for key in self.layout.cameras.values()}
        if len(sizes) > 1:
            raise UserError(f"{self.folder}: cameras have different sizes {sorted(sizes)}; resize them to one size")
        height, width = sizes.pop()
        if height != width and self.layout.environment:
            raise UserError(
                f"{self.folder}: images are {height}x{width}, the policy's are square; crop or pad them to a square"
            )
        return height, width

    def _dim(self, column: str) -> int:
        shape = self.features[column].shape
        if shape is None or len(shape) != 1 or shape[0] < 1:
            raise UserError(f"{self.folder}/meta/info.json: features[{column!r}].shape is {shape}; give one length")
        return shape[0]

    @property
    def state_dim(self) -> int:
        """Values of a state, as the metadata promises."""
        return self._dim(self.layout.state)

    @property
    def action_dim(self) -> int:
        """Values of an action, as the metadata promises."""
        return self._dim(self.layout.action)

    def columns(self, entry: EpisodeEntry) -> EpisodeColumns:
        """State, action and task of an episode's rows.

        Raises:
            UserError: truncated file, rows that do not fit the metadata or are not evenly spaced in time, no
                instruction.

        """
        names = [self.layout.state, self.layout.action]
        table, tasks = self._checked(entry, names)
        state, action = (self._matrix(table, name, f"{entry.data}: episode {entry.index}") for name in names)
        return EpisodeColumns(state, action, tasks)

    def task_index(self, entry: EpisodeEntry) -> Int64[np.ndarray, " n"]:
        """The task of each row of an episode, without its other columns.

        Raises:
            UserError: see :meth:`columns`.

        """
        return self._checked(entry, [])[1]

    def _checked(self, entry: EpisodeEntry, names: list[str]) -> tuple[pa.Table, np.ndarray]:
        """Some columns of one episode, whose rows are in order and evenly spaced in time, and each row's task."""
        table = self._rows(entry, [*names, "frame_index", "task_index"])
        where = f"{entry.data}: episode {entry.index}"
        if table["frame_index"].to_pylist() != list(range(entry.length)):
            raise UserError(f"{where}: frame_index does not count from 0 to {entry.length - 1}; {SKIP}")
        self._times(entry)
        return table, self._tasks_of(table, where)

    def images(self, entry: EpisodeEntry, rows: np.ndarray) -> UInt8[np.ndarray, "n cameras height width 3"]:
        """Images of an episode at some control steps (increasing), cameras in the layout's order.

        Raises:
            UserError: missing, damaged or truncated images, of another size than the metadata's, or a video whose
                frames are not those of the rows.

        """
        if entry.index in self._clock_faults:
            raise UserError(f"{self._clock_faults[entry.index]}, or leave such episodes out with --skip-bad")
        return np.stack([self._camera(entry, key, rows) for key in self.layout.cameras.values()], axis=1)

    def _camera(self, entry: EpisodeEntry, key: str, rows: np.ndarray) -> np.ndarray:
        if key in entry.videos:
            place = entry.videos[key]
            times = self._times(entry)
            if abs(times[0]) * self.info.fps > STEADY:
                raise UserError(f"{entry.data}: episode {entry.index} begins at {times[0]:.3f} s, expected 0; {SKIP}")
            step = float(np.median(np.diff(times))) if len(times) > 1 else 1.0 / self.info.fps
            frames = decode_video(place.path, place.start, times, rows, step, place.frames)
            return stack_images(frames, self.image_size, str(place.path))
        where = f"{entry.data}: episode {entry.index} {key}"
        with reading(entry.data, FIX):
            cells = self._rows(entry, [key])[key].take(pa.array(rows)).to_pylist()
        images = [decode_image(cell.get("bytes") if isinstance(cell, dict) else None, where) for cell in cells]
        return stack_images(images, self.image_size, where)

    def _rows(self, entry: EpisodeEntry, names: list[str]) -> pa.Table:
        """Some columns of one episode's rows, from whichever files have them, in their order."""
        if entry.length < 1:
            raise UserError(f"{entry.data}: episode {entry.index} has 0 rows; {SKIP}")
        files = [entry.data] if self.data_files is None else self.data_files.files(entry)
        tables = [read_parquet(file, names, FIX, rows_of=entry.index) for file in files]
        with reading(entry.data, FIX):
            table = pa.concat_tables(tables)
        if table.num_rows != entry.length:
            raise UserError(
                f"{entry.data}: episode {entry.index} has {table.num_rows} rows, meta says {entry.length}; "
                f"download the dataset again, {SKIP}"
            )
        return table

    def _times(self, entry: EpisodeEntry) -> Float64[np.ndarray, " n"]:
        """When each row was taken, in seconds from the episode's start: the column ``timestamp``, if there is one."""
        if "timestamp" not in self.features:
            return np.arange(entry.length) / self.info.fps
        where = f"{entry.data}: episode {entry.index}"
        column = self._rows(entry, ["timestamp"])["timestamp"]
        if not pa.types.is_floating(column.type) or column.null_count:
            raise UserError(f"{where}: timestamp is {column.type} with {column.null_count} nulls, not seconds; {SKIP}")
        times = column.to_numpy().astype(np.float64)
        if len(times) < 2 and np.isfinite(times).all():
            return times
        steps = np.diff(times)
        usual = float(np.median(steps))
        uneven = np.flatnonzero(~(np.abs(steps - usual) <= STEADY * abs(usual)))
        if not usual > 0 or len(uneven):
            row = int(uneven[0]) if len(uneven) else 0
            raise UserError(
                f"{where}: timestamp goes from {times[row]:.4g} to {times[row + 1]:.4g} s at row {row + 1}, usual are "
                f"{usual:.4g} s; rows are missing or their clock is wrong, {SKIP}"
            )
        self._require_rate(1 / usual, f"rate of the timestamps of episode {entry.index}")
        return times

    def _require_rate(self, rate: float, what: str) -> None:
        """Refuses rows of another rate than the layout's; says if it is not that of the metadata.

        A layout file may correct the rate of a dataset, and then says as ``fps_label`` which rate it corrects.
        """
        layout, own = self.layout, self.layout.control_hz
        if own is None and layout.environment:
            own = ENVIRONMENTS.resolve(layout.environment).observation_spec.control_hz
        known = [value for value in (layout.fps_label, own) if value]
        if known and all(abs(rate / value - 1) > SAME_RATE for value in known):
            message = f"{self.folder}: {what} is {rate:.4g}, layout {layout.name} has rows of {own or rate:g} Hz"
            if layout.environment:
                raise UserError(f"{message}, labelled {layout.fps_label}; resample the dataset to {own:g} Hz")
            raise UserError(
                f"{message}; correct control_hz in the layout's file, or add fps_label = {rate:.4g} to it if the "
                "dataset is wrong"
            )
        if abs(rate / self.info.fps - 1) > SAME_RATE and not getattr(self, "_rate_told", False):
            self._rate_told = True
            text = "%s: meta/info.json says %g fps, the timestamps are those of %.4g; the timestamps are used"
            logging.getLogger("wmjax").warning(text, self.folder, self.info.fps, rate)

    def _tasks_of(self, table: pa.Table, where: str) -> Int64[np.ndarray, " n"]:
        """The task of each row of an episode."""
        column = table["task_index"]
        if not pa.types.is_integer(column.type) or column.null_count:
            raise UserError(
                f"{where}: task_index is {column.type} with {column.null_count} nulls, not integers; {SKIP}"
            )
        for task in column.unique().to_pylist():
            if task not in self.tasks:
                raise UserError(f"{where}: task_index is {task}, which meta/tasks does not have; {SKIP}")
        return column.to_numpy().astype(np.int64)

    def _matrix(self, table: pa.Table, name: str, where: str) -> np.ndarray:
        """A list column as float32 [n, dim]."""
        column, shape = table[name], self.features[name].shape
        dim = shape[0] if shape is not None and len(shape) == 1 else 0
        kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
        lists = any(is_kind(column.type) for is_kind in kinds)
        numbers = lists and (
            pa.types.is_floating(column.type.value_type) or pa.types.is_integer(column.type.value_type)
        )
        if numbers and not column.null_count and pc.all(pc.equal(pc.list_value_length(column), dim)).as_py():
            flat = pc.list_flatten(column)
            if not flat.null_count:
                with np.errstate(over="ignore"):
                    return flat.to_numpy().astype(np.float32).reshape(-1, dim)
        raise UserError(f"{where}: {name} is not {dim or 'a known number of'} numbers in every row; {SKIP}")

    def _check_totals(self) -> None:
        """Says with both numbers if another number of episodes or frames is announced than is listed.

        Episodes of images that the metadata announces, that it does not list, and whose rows are there, are added.
        """
        announced = self.info.total_episodes
        if self.data_files is not None and announced is not None and announced > len(self.episodes):
            self._add_unlisted(announced)
        frames = sum(entry.length for entry in self.episodes)
        pairs = (
            ("episodes", announced, len(self.episodes)),
            ("frames", self.info.total_frames, frames),
        )
        for what, promised, found in pairs:
            if promised is not None and promised != found:
                text = "%s: meta/info.json announces %d %s, %d are there; a part may be missing"
                logging.getLogger("wmjax").warning(text, self.folder, promised, what, found)

    def _add_unlisted(self, announced: int) -> None:
        assert self.data_files is not None
        listed = {entry.index for entry in self.episodes}
        found = [index for index in sorted(self.data_files.rows) if index not in listed]
        if not found or self._video_keys():  # where an episode begins in a video only the list says
            return
        text = "%s: meta/episodes lists %d of %d episodes; %d more are in the data files and are taken from there"
        logging.getLogger("wmjax").warning(text, self.folder, len(listed), announced, len(found))
        for index in found:
            path = next(iter(self.data_files.rows[index]))
            self.episodes.append(EpisodeEntry(index, self.data_files.length(index), path, {}))
        self.episodes.sort(key=lambda entry: entry.index)

    def _video_keys(self) -> list[str]:
        return [key for key in self.layout.cameras.values() if self.features[key].dtype == "video"]


def _as_mappings(features: dict[str, Feature]) -> dict[str, dict[str, Any]]:
    """The columns as the layouts look at them; what the metadata leaves out is left out."""
    return {name: {k: v for k, v in vars(f).items() if v is not None} for name, f in features.items()}
