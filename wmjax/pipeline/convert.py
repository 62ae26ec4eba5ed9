"""The conversion of published demonstrations of any format to a training store."""

from collections.abc import Callable
from pathlib import Path
from typing import get_args

from wmjax.core.options import Short, number_list
from wmjax.data.formats.base import AUTO, FORMATS, ConvertSettings, choose_format
from wmjax.data.formats.importer import Gripper
from wmjax.data.store import TrainingStore

SHORTS = {
    "image-size": Short("image_size", "pixels"),
    "frame-stride": Short("frame_stride", "control steps per frame"),
    "max-episodes": Short("max_episodes", "convert only the first N episodes"),
    "gripper-convention": Short(
        "gripper_convention",
        f"what opens the gripper in the data: {', '.join(get_args(Gripper))}; the first is LIBERO's, -1 opens and +1 "
        "closes",
    ),
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
    "format": Short(
        "format",
        f"of the data: {', '.join(FORMATS.known)}, or package.module:Class; {AUTO} takes the first that recognises "
        "the data",
        str,
    ),
}
"""The settings that have a short option, by option."""


def convert_dataset(
    data: str,
    out: Path,
    settings: ConvertSettings,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> TrainingStore:
    """Converts demonstrations of any format.

    Args:
        data: a folder, or a hub id of a LeRobot dataset.
        out: the training store to write; an interrupted conversion resumes there.
        settings: how.
        progress: called with the number of finished episodes, and of all.

    Raises:
        UserError: an option of another format, or data that cannot be converted.

    """
    return choose_format(data, settings).convert(data, out, settings, progress)


def describe_store(store: TrainingStore) -> str:
    """Describes the content of a training store in a few lines."""
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
