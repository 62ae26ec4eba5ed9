"""The conversion of published demonstrations to a training store, whatever their format."""

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn, get_args

from wmjax.core.errors import UserError
from wmjax.core.location import location
from wmjax.core.options import Short, number_list
from wmjax.core.paths import expand
from wmjax.core.settings import Count, Depth, Range, Settings
from wmjax.data.formats import libero_hdf5
from wmjax.data.formats.importer import Gripper
from wmjax.data.formats.lerobot.convert import convert
from wmjax.data.formats.lerobot.video import convert_video
from wmjax.data.store import TrainingStore


@dataclasses.dataclass(frozen=True)
class ConvertSettings(Settings, section="convert"):
    """The settings of a conversion.

    Attributes:
        image_size: pixels.
        frame_stride: control steps per frame.
        max_episodes: convert only the first so many; None converts all.
        gripper_convention: what opens the gripper in the data.
        skip_bad: leave out episodes that cannot be used, and list them in the manifest.
        layout: of LeRobot's columns: a known name or a TOML file; chosen by the columns when None.
        grippers: LeRobot: action dimensions that are gripper commands; found by their names when None.
        select: LeRobot: words that name some cameras, episodes or tasks, as in ``cameras=top,wrist``,
            ``episodes=0:20,25``, ``tasks=0,2``; all without.
        revision: of the hub dataset.
        video_only: LeRobot: the training store beside which only the frames of this dataset are used, whose actions
            may be missing; None converts demonstrations.
        rows: HDF5: whether an observation was taken after or before the action of its row; after when None.

    """

    image_size: Annotated[int, Range(1, 10_000)] = 112
    frame_stride: Depth = 4
    max_episodes: Count | None = None
    gripper_convention: Gripper = "open-negative"
    skip_bad: bool = False
    layout: str | None = None
    grippers: tuple[int, ...] | None = None
    select: tuple[str, ...] | None = None
    revision: str | None = None
    video_only: str | None = None
    rows: libero_hdf5.Rows | None = None


def _renamed(text: str) -> NoReturn:
    raise UserError(f"--gripper is now called --gripper-convention; write --gripper-convention {text}")


SHORTS = {
    "image-size": Short("image_size", "pixels"),
    "frame-stride": Short("frame_stride", "control steps per frame"),
    "max-episodes": Short("max_episodes", "convert only the first so many episodes"),
    "gripper-convention": Short(
        "gripper_convention",
        f"what opens the gripper in the data: {', '.join(get_args(Gripper))}; the first is LIBERO's, -1 opens and +1 "
        "closes",
    ),
    "gripper": Short("gripper_convention", argparse.SUPPRESS, _renamed),
    "skip-bad": Short("skip_bad", "leave out episodes that cannot be used; the manifest lists them", flag=True),
    "layout": Short(
        "layout", "which LeRobot columns to read: a known name, or a TOML file; chosen by the columns if not given", str
    ),
    "grippers": Short(
        "grippers",
        "action dimensions that are gripper commands, such as 6,13, or none; those with 'gripper' in their name if "
        "not given",
        number_list,
    ),
    "select": Short(
        "select",
        "convert only some cameras, episodes or tasks of a LeRobot dataset, such as cameras=top,wrist episodes=0:20,25 "
        "tasks=0,2",
        str,
        words=True,
    ),
    "revision": Short("revision", "revision of the hub dataset", str),
    "video-only": Short(
        "video_only",
        "convert only the frames of a LeRobot dataset, whose actions may be missing, with the cameras and sizes of "
        "this training store, beside which they train the world model",
        str,
    ),
    "rows": Short(
        "rows",
        "HDF5: whether row j of the observations was taken after action j (LIBERO's own files, the default) or before "
        "it (files that were replayed and filtered, without LIBERO's attributes)",
    ),
}
"""The settings that have a short option, by option."""


def convert_dataset(
    data: str,
    out: Path,
    settings: ConvertSettings,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> TrainingStore:
    """Converts a LeRobot dataset, or a folder of LIBERO's HDF5 files.

    Args:
        data: a folder, or a hub id of a LeRobot dataset.
        out: the training store to write; an interrupted conversion resumes there.
        settings: how.
        progress: called with the number of finished episodes, and of all.

    Raises:
        UserError: an option of the other format, or data that cannot be converted.

    """
    shared: dict[str, Any] = {
        "image_size": settings.image_size,
        "frame_stride": settings.frame_stride,
        "max_episodes": settings.max_episodes,
        "gripper": settings.gripper_convention,
        "skip_bad": settings.skip_bad,
        "progress": progress,
    }
    lerobot: dict[str, Any] = {name: getattr(settings, name) for name in ("layout", "revision", "grippers", "select")}
    if settings.video_only is not None:
        return _convert_video(data, out, settings, progress)
    if not libero_hdf5.find_files(expand(data)):
        if settings.rows is not None:
            raise UserError(f"--rows is for LIBERO's HDF5 files, {data} holds none; leave it out")
        return convert(data, out, **{**lerobot, "select": settings.select or ()}, **shared)
    for name, value in lerobot.items():
        if value is not None:
            raise UserError(f"--{name} is for LeRobot datasets, {data} holds HDF5 files; leave it out")
    return libero_hdf5.convert(expand(data), out, rows=settings.rows or "after", **shared)


def _convert_video(
    data: str, out: Path, settings: ConvertSettings, progress: Callable[[int, int], None]
) -> TrainingStore:
    """Converts a LeRobot dataset's frames; what the other store says cannot be said again."""
    assert settings.video_only is not None
    names = ("image_size", "frame_stride", "gripper_convention", "grippers", "select", "rows")
    for name in names:
        value = getattr(settings, name)
        if value != getattr(ConvertSettings(), name):
            raise UserError(
                f"--{name.replace('_', '-')} is {value}, but with --video-only the store {settings.video_only} says "
                "what it needs, and no action is read; leave it out"
            )
    return convert_video(
        data,
        out,
        TrainingStore(location(settings.video_only)),
        layout=settings.layout,
        max_episodes=settings.max_episodes,
        revision=settings.revision,
        skip_bad=settings.skip_bad,
        progress=progress,
    )


def describe_store(store: TrainingStore) -> str:
    """What a training store holds, in a few lines."""
    spec, action = store.spec, store.action_spec
    grippers = ", ".join(action.names[index] for index in action.grippers) or "none"
    lines = [
        f"{store.folder}: {len(store.episodes)} episodes, {len(store.tasks)} tasks, {len(store.frame_step)} frames",
        f"cameras {', '.join(spec.cameras)}; {spec.state_dim} states, {action.dim} actions (grippers: {grippers}), "
        f"{spec.control_hz:g} per second",
    ]
    if skipped := store.manifest.get("skipped"):
        lines.append(f'left out {len(skipped)} episodes, see "skipped" in {store.folder / "manifest.json"}')
    return "\n".join(lines)
