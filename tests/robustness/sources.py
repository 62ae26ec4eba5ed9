"""Small LeRobot datasets whose pixels say which row they show, and changes to them."""

import io
import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from wmjax.data.formats import libero_hdf5

CAMERAS = ("observation.images.image", "observation.images.image2")
SIZE, FPS = 32, 10
STEP = 4
"""Brightness from one row to the next."""


def frames(length: int, first: int = 0) -> np.ndarray:
    """uint8 [length, SIZE, SIZE, 3], row k of brightness 10 + STEP (first + k)."""
    values = (10 + STEP * (first + np.arange(length))).astype(np.uint8)
    return np.broadcast_to(values[:, None, None, None], (length, SIZE, SIZE, 3))


def shown_rows(images: np.ndarray) -> list[int]:
    """Which rows stored frames ``[n, cameras, height, width, 3]`` show, by the first camera."""
    return np.round((images[:, 0].astype(float).mean(axis=(1, 2, 3)) - 10) / STEP).astype(int).tolist()


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def write_mp4(path: Path, images: np.ndarray, fps: int = FPS, delay: int = 0) -> None:
    """An MP4 whose first frame is shown ``delay`` frames after 0."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=Fraction(fps), options={"crf": "5", "g": "2", "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = images.shape[2], images.shape[1], "yuv420p"
        packets = []
        for image in images:
            packets += stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24"))
        for packet in [*packets, *stream.encode()]:
            shift = round(delay / fps / packet.time_base)
            packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
            out.mux(packet)


def rows(index: int, length: int, start: int, *, video: bool, task: int = 0, fps: float = FPS) -> pa.Table:
    """An episode's rows; actions and state are noise, the gripper opens (-1) and then closes (+1)."""
    random = np.random.default_rng(index)
    action = random.uniform(-0.9, 0.9, (length, 7))
    action[:, 6] = np.where(np.arange(length) < length // 2, -1, 1)
    columns: dict[str, Any] = {}
    if not video:
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        for camera in CAMERAS:
            cells = [{"bytes": png(image), "path": f"{k}.png"} for k, image in enumerate(frames(length))]
            columns[camera] = pa.array(cells, kind)
    columns["observation.state"] = pa.array(random.normal(size=(length, 8)).tolist(), pa.list_(pa.float32()))
    columns["action"] = pa.array(action.tolist(), pa.list_(pa.float32()))
    columns["timestamp"] = pa.array((np.arange(length) / fps).astype(np.float32))
    columns["frame_index"] = pa.array(np.arange(length))
    columns["episode_index"] = pa.array(np.full(length, index))
    columns["index"] = pa.array(np.arange(start, start + length))
    columns["task_index"] = pa.array(np.full(length, task))
    return pa.table(columns)


def features(video: bool) -> dict[str, Any]:
    image = {"dtype": "video" if video else "image", "shape": [SIZE, SIZE, 3], "names": ["height", "width", "channel"]}
    found: dict[str, Any] = {camera: dict(image) for camera in CAMERAS}
    found |= {"observation.state": {"dtype": "float32", "shape": [8]}, "action": {"dtype": "float32", "shape": [7]}}
    names = ("timestamp", "frame_index", "episode_index", "index", "task_index")
    return found | {name: {"dtype": "float32" if name == "timestamp" else "int64", "shape": [1]} for name in names}


def write_v30(
    root: Path,
    lengths: tuple[int, ...] = (12, 9, 14),
    *,
    video: bool = False,
    tasks: tuple[str, ...] = ("pick up the bowl",),
) -> Path:
    """A v3.0 dataset, all episodes in one data file and one MP4 per camera."""
    (root / "meta/episodes/chunk-000").mkdir(parents=True)
    (root / "data/chunk-000").mkdir(parents=True)
    start, parts, listed = 0, [], []
    for index, length in enumerate(lengths):
        parts.append(rows(index, length, start, video=video, task=index % len(tasks)))
        row = {"episode_index": index, "length": length, "data/chunk_index": 0, "data/file_index": 0}
        if video:
            for camera in CAMERAS:
                row |= {f"videos/{camera}/{name}": 0 for name in ("chunk_index", "file_index")}
                row[f"videos/{camera}/from_timestamp"] = start / FPS
                row[f"videos/{camera}/to_timestamp"] = (start + length) / FPS
        listed.append(row)
        start += length
    pq.write_table(pa.concat_tables(parts), root / "data/chunk-000/file-000.parquet")
    pq.write_table(pa.Table.from_pylist(listed), root / "meta/episodes/chunk-000/file-000.parquet")
    table = pa.table({"task_index": list(range(len(tasks))), "__index_level_0__": list(tasks)})
    pq.write_table(table, root / "meta/tasks.parquet")
    if video:
        for camera in CAMERAS:
            images = np.concatenate([frames(length) for length in lengths])
            write_mp4(root / f"videos/{camera}/chunk-000/file-000.mp4", images)
    _write_info(root, "v3.0", lengths, video, "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
                "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4")  # fmt: skip
    return root


def write_v21(
    root: Path,
    lengths: tuple[int, ...] = (12, 9, 14),
    *,
    video: bool = False,
    tasks: tuple[str, ...] = ("pick up the bowl",),
) -> Path:
    """A v2.1 dataset, a data file and an MP4 per camera for each episode."""
    (root / "meta").mkdir(parents=True)
    (root / "data/chunk-000").mkdir(parents=True)
    start = 0
    for index, length in enumerate(lengths):
        table = rows(index, length, start, video=video, task=index % len(tasks))
        pq.write_table(table, root / f"data/chunk-000/episode_{index:06d}.parquet")
        if video:
            for camera in CAMERAS:
                write_mp4(root / f"videos/chunk-000/{camera}/episode_{index:06d}.mp4", frames(length))
        start += length
    write_lines(root / "meta/episodes.jsonl", [{"episode_index": i, "length": n} for i, n in enumerate(lengths)])
    write_lines(root / "meta/tasks.jsonl", [{"task_index": i, "task": task} for i, task in enumerate(tasks)])
    _write_info(root, "v2.1", lengths, video, "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
                "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4")  # fmt: skip
    return root


def write_lines(path: Path, values: list[dict[str, Any]]) -> None:
    text = "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)
    path.write_text(text, encoding="utf-8")


def _write_info(root: Path, version: str, lengths: tuple[int, ...], video: bool, data: str, videos: str) -> None:
    info = {
        "codebase_version": version,
        "total_episodes": len(lengths),
        "total_frames": sum(lengths),
        "chunks_size": 1000,
        "fps": FPS,
        "data_path": data,
        "video_path": videos if video else None,
        "features": features(video),
    }
    (root / "meta/info.json").write_text(json.dumps(info), encoding="utf-8")


def edit_info(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = root / "meta/info.json"
    info = json.loads(path.read_text(encoding="utf-8"))
    change(info)
    path.write_text(json.dumps(info), encoding="utf-8")


def edit_table(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.read_table(path)), path)


def set_column(name: str, values: Any, kind: pa.DataType | None = None) -> Callable[[pa.Table], pa.Table]:
    """A change of a table that replaces one column."""

    def change(table: pa.Table) -> pa.Table:
        column = pa.array(values, kind or table.schema.field(name).type)
        return table.set_column(table.schema.get_field_index(name), name, column)

    return change


def edit_rows(path: Path, change: Callable[[list[dict[str, Any]]], object]) -> None:
    """Edits a table as a list of its rows."""
    content = pq.read_table(path).to_pylist()
    change(content)
    pq.write_table(pa.Table.from_pylist(content), path)


def write_hdf5(path: Path, length: int = 8) -> Path:
    """Two demonstrations in LIBERO's format."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["problem_info"] = json.dumps({"language_instruction": "lift it"})
        data.attrs["macros_image_convention"] = "opengl"
        data.attrs["bddl_file_name"] = "a/libero_spatial/x.bddl"
        data.attrs["env_args"] = json.dumps({"env_kwargs": {"control_freq": 20}})
        for demo in ("demo_0", "demo_1"):
            group = data.create_group(demo)
            group["actions"] = np.tile([0.0, 0, 0, 0, 0, 0, -1], (length, 1))
            for name, size in libero_hdf5.STATE.items():
                group[f"obs/{name}"] = np.zeros((length, size))
            for name in libero_hdf5.CAMERAS.values():
                group[f"obs/{name}"] = np.zeros((length, 16, 16, 3), np.uint8)
    return path
