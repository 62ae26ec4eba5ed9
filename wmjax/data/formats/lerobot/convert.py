"""Conversion of a LeRobot dataset (local folder or hub id) to a training store."""

import functools
import re
from pathlib import Path

import numpy as np

from wmjax.core.errors import UserError
from wmjax.core.files import hash_json
from wmjax.core.location import local
from wmjax.core.specs import PUBLISHED, ObservationSpec
from wmjax.data.episode import EpisodeData
from wmjax.data.formats.importer import Progress, convert_episodes, refuse_finished, require_positive
from wmjax.data.formats.lerobot.dataset import EpisodeEntry, LeRobotDataset
from wmjax.data.formats.lerobot.layout import load_layout
from wmjax.data.observation import resize_image
from wmjax.data.store import TrainingStore

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def convert(
    source: str,
    out: Path,
    *,
    image_size: int = 112,
    frame_stride: int = 4,
    layout: str | None = None,
    max_episodes: int | None = None,
    revision: str | None = None,
    progress: Progress = lambda done, total: None,
) -> TrainingStore:
    """Converts a dataset, episode by episode; interrupted, it resumes where it stopped.

    Images are kept every ``frame_stride`` control steps, resized to ``image_size`` by
    :func:`wmjax.data.observation.resize_image`; state and action at every step.

    Args:
        source: local folder or hub id such as ``HuggingFaceVLA/libero``.
        out: the training store to be.
        image_size: pixels.
        frame_stride: control steps per frame.
        layout: name of a layout file; chosen by the columns when None.
        max_episodes: only the first so many.
        revision: of the hub dataset.
        progress: called with episodes done and their total.

    Raises:
        UserError: everything that is wrong with the source; ``out`` holds a store or another conversion.

    """
    out = local(out)
    refuse_finished(out)
    require_positive(image_size, frame_stride, max_episodes)
    folder = resolve(source, revision)
    dataset = LeRobotDataset(folder, load_layout(layout) if layout else None)
    spec = observation_spec(dataset, image_size, frame_stride)
    episodes = {
        f"episode-{entry.index:06d}": functools.partial(read_episode, dataset, entry, spec, source)
        for entry in dataset.episodes[:max_episodes]
    }
    content = hash_json([dataset.info, [(entry.index, entry.length) for entry in dataset.episodes]])
    return convert_episodes(out, spec, {"source": source, "content": content}, episodes, progress)


def resolve(source: str, revision: str | None) -> Path:
    """The folder of a dataset, downloading it when ``source`` is a hub id.

    Raises:
        UserError: neither a folder nor a hub id, or the download fails.

    """
    if Path(source).is_dir():
        return Path(source)
    if not HUB_ID.fullmatch(source):
        raise UserError(f"data is {source!r}, no folder there and no hub id; give a folder or OWNER/NAME")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, repo_type="dataset", revision=revision))
    except Exception as error:  # the hub client raises its own, requests' and httpx's kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"data is {source!r}: no such folder, and the download failed ({reason}); check name and network"
        ) from error


def observation_spec(dataset: LeRobotDataset, image_size: int, frame_stride: int) -> ObservationSpec:
    """The conventions of the converted data."""
    layout, (height, width) = dataset.layout, dataset.image_size
    resized = None if (height, width) == (image_size, image_size) else height
    return ObservationSpec(
        cameras=tuple(layout.cameras),
        image_size=image_size,
        rotation=layout.rotation,
        resize_filter="none" if resized is None else "bilinear",
        control_hz=layout.control_hz,
        frame_stride=frame_stride,
        reflection=True,
        mesh_detail_mm=0.0,
        simulator=f"{PUBLISHED} in {layout.name}",
        drawn_size=0 if resized is None else resized,
    )


def read_episode(dataset: LeRobotDataset, entry: EpisodeEntry, spec: ObservationSpec, source: str) -> EpisodeData:
    """One episode of a dataset in the store's form; the executed actions are the labels.

    Raises:
        UserError: damaged files, or rows that do not fit the metadata.

    """
    columns = dataset.columns(entry)
    steps = np.arange(0, entry.length, spec.frame_stride, dtype=np.int32)
    full = dataset.images(entry, steps)
    images = np.stack([[resize_image(image, spec.image_size) for image in frame] for frame in full])
    name = dataset.layout.name if Path(source).is_dir() else source
    return EpisodeData(
        images=images,
        frame_step=steps,
        state=columns.state,
        action=columns.action,
        executed=columns.action,
        settled_state=np.zeros(0),
        meta={
            "suite": name,
            "task_id": columns.task_index,
            "instruction": columns.instruction,
            "source_episode": entry.index,
        },
    )
