"""The conversion of published demonstrations to a training store, whatever their format."""

from collections.abc import Callable
from pathlib import Path

from wmjax.core.errors import UserError
from wmjax.data.formats import libero_hdf5
from wmjax.data.formats.importer import Gripper
from wmjax.data.formats.lerobot.convert import convert
from wmjax.data.store import TrainingStore


def convert_dataset(
    data: str,
    out: Path,
    *,
    image_size: int = 112,
    frame_stride: int = 4,
    max_episodes: int | None = None,
    gripper: Gripper = "open-negative",
    skip_bad: bool = False,
    layout: str | None = None,
    grippers: tuple[int, ...] | None = None,
    revision: str | None = None,
    rows: libero_hdf5.Rows | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> TrainingStore:
    """Converts a LeRobot dataset, or a folder of LIBERO's HDF5 files.

    Args:
        data: a folder, or a hub id of a LeRobot dataset.
        out: the training store to write; an interrupted conversion resumes there.
        image_size: pixels.
        frame_stride: control steps per frame.
        max_episodes: convert only the first so many.
        gripper: what opens the gripper in the data.
        skip_bad: leave out episodes that cannot be used, and list them in the manifest.
        layout: of LeRobot's columns: a known name or a TOML file; chosen by the columns when None.
        grippers: LeRobot: action dimensions that are gripper commands; found by their names when None.
        revision: of the hub dataset.
        rows: HDF5: whether an observation was taken after or before the action of its row.
        progress: called with the number of finished episodes, and of all.

    Raises:
        UserError: an option of the other format, or data that cannot be converted.

    """
    lerobot = {"layout": layout, "revision": revision, "grippers": grippers}
    if not libero_hdf5.find_files(Path(data)):
        if rows is not None:
            raise UserError(f"--rows is for LIBERO's HDF5 files, {data} holds none; leave it out")
        return convert(
            data,
            out,
            layout=layout,
            revision=revision,
            grippers=grippers,
            image_size=image_size,
            frame_stride=frame_stride,
            max_episodes=max_episodes,
            gripper=gripper,
            skip_bad=skip_bad,
            progress=progress,
        )
    for name, value in lerobot.items():
        if value is not None:
            raise UserError(f"--{name} is for LeRobot datasets, {data} holds HDF5 files; leave it out")
    return libero_hdf5.convert(
        Path(data),
        out,
        rows=rows or "after",
        image_size=image_size,
        frame_stride=frame_stride,
        max_episodes=max_episodes,
        gripper=gripper,
        skip_bad=skip_bad,
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
