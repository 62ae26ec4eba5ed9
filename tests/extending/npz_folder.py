"""A dataset format in one file: a folder of .npz episodes, of a robot with one camera and two joints."""

import functools
from pathlib import Path
from typing import ClassVar

import numpy as np

from wmjax.core.errors import UserError
from wmjax.core.files import read_npz
from wmjax.core.paths import expand, listed
from wmjax.core.specs import ActionSpec, ObservationSpec
from wmjax.data.episode import EpisodeData
from wmjax.data.formats.base import ConvertSettings, DatasetFormat
from wmjax.data.formats.importer import Progress, convert_episodes, identify
from wmjax.data.observation import resize_image
from wmjax.data.store import TrainingStore

JOINTS = ("shoulder", "elbow")
HZ = 25.0


class NpzFolder(DatasetFormat):
    """Each file has images [n, h, h, 3], state [n, 2], action [n, 2] and an instruction."""

    title: ClassVar[str] = "folders of .npz episodes"

    @classmethod
    def recognises(cls, data: str) -> bool:
        """Whether there is an .npz file."""
        return bool(listed(expand(data), "*.npz"))

    @classmethod
    def convert(cls, data: str, out: Path, settings: ConvertSettings, progress: Progress) -> TrainingStore:
        """Episode by episode."""
        files = listed(expand(data), "*.npz")
        if not files:
            raise UserError(f"{data}: no .npz files there; give the folder of the episodes")
        spec = ObservationSpec(
            cameras=("front",),
            state=JOINTS,
            state_units=("rad", "rad"),
            control_hz=HZ,
            image_size=settings.image_size,
            frame_stride=settings.frame_stride,
        )
        action = ActionSpec(JOINTS, ("rad", "rad"), "joint positions")
        readers = {path.stem: functools.partial(read, path, spec) for path in files[: settings.max_episodes]}
        source = {"source": data, "content": identify(expand(data), files)}
        return convert_episodes(out, spec, action, source, readers, progress, skip_bad=settings.skip_bad)


def read(path: Path, spec: ObservationSpec) -> EpisodeData:
    """One file as an episode."""
    arrays = read_npz(path, ("images", "state", "action", "instruction"))
    steps = np.arange(0, len(arrays["action"]), spec.frame_stride, dtype=np.int32)
    images = np.stack([resize_image(image, spec.image_size) for image in arrays["images"][steps]])
    meta = {"suite": "npz", "task_id": 0, "instruction": str(arrays["instruction"]), "source_file": path.name}
    return EpisodeData(images[:, None], steps, arrays["state"], arrays["action"], arrays["action"], np.zeros(0), meta)
