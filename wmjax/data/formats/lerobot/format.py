"""LeRobot datasets as a :class:`wmjax.data.formats.base.DatasetFormat`."""

from pathlib import Path
from typing import ClassVar

from wmjax.core.errors import UserError
from wmjax.core.location import location
from wmjax.data.formats.base import ConvertSettings, DatasetFormat
from wmjax.data.formats.importer import Progress
from wmjax.data.formats.lerobot.convert import convert
from wmjax.data.formats.lerobot.video import convert_video
from wmjax.data.store import TrainingStore


class LeRobot(DatasetFormat):
    """Datasets v2.0 to v3.0, in a folder or on the hub."""

    title: ClassVar[str] = "LeRobot datasets"
    options: ClassVar[tuple[str, ...]] = ("layout", "grippers", "select", "revision", "video_only")

    @classmethod
    def recognises(cls, data: str) -> bool:
        """Tried last: any other text is taken for a hub id, or for a folder that lacks its files."""
        return True

    @classmethod
    def convert(cls, data: str, out: Path, settings: ConvertSettings, progress: Progress) -> TrainingStore:
        """Demonstrations, or with ``video_only`` the frames alone."""
        if settings.video_only is not None:
            return _convert_video(data, out, settings, settings.video_only, progress)
        return convert(
            data,
            out,
            image_size=settings.image_size,
            frame_stride=settings.frame_stride,
            layout=settings.layout,
            max_episodes=settings.max_episodes,
            revision=settings.revision,
            grippers=settings.grippers,
            select=settings.select or (),
            gripper=settings.gripper_convention,
            skip_bad=settings.skip_bad,
            progress=progress,
        )


def _convert_video(data: str, out: Path, settings: ConvertSettings, like: str, progress: Progress) -> TrainingStore:
    """Converts a dataset's frames; settings that the store ``like`` fixes are refused."""
    for name in ("image_size", "frame_stride", "gripper_convention", "grippers", "select"):
        value = getattr(settings, name)
        if value != getattr(ConvertSettings(), name):
            raise UserError(
                f"--{name.replace('_', '-')} is {value}, but with --video-only the store {like} says what it needs, "
                "and no action is read; leave it out"
            )
    return convert_video(
        data,
        out,
        TrainingStore(location(like)),
        layout=settings.layout,
        max_episodes=settings.max_episodes,
        revision=settings.revision,
        skip_bad=settings.skip_bad,
        progress=progress,
    )
