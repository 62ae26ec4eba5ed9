"""Key layouts in TOML: which column of a LeRobot dataset is which camera, state and action."""

import dataclasses
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from wmjax.core.errors import UserError, unknown_name
from wmjax.core.paths import expand
from wmjax.core.reading import read_toml
from wmjax.core.settings import build
from wmjax.sim.environment import ENVIRONMENTS

INDEX_COLUMNS = ("episode_index", "frame_index", "task_index")


@dataclasses.dataclass(frozen=True)
class Layout:
    """Columns and conventions of a dataset, or of a family of them.

    What no layout file says comes from the dataset's ``info.json``.

    Attributes:
        name: of the layout.
        state, action: the columns.
        cameras: our camera names, in order, and their image columns.
        images: how the family stores its images; None if in either way.
        environment: whose observations and actions these are: a name of :data:`wmjax.sim.environment.ENVIRONMENTS` or
            ``package.module:Class``; "" for a robot of which only the dataset knows.
        rotation: degrees by which the images were rotated already; of an environment, its own.
        control_hz: true rate of the rows; of an environment, its own; else the metadata's fps.
        fps_label: what the metadata claims, where that is another rate.
        grippers: action dimensions that are gripper commands; those with "gripper" in their name when None.
        gripper_open, gripper_closed: the raw values of each gripper; its largest and smallest in the data when empty.
        position, orientation, fingers: see :class:`wmjax.core.specs.ObservationSpec`.

    """

    name: str
    state: str
    action: str
    cameras: dict[str, str]
    images: Literal["image", "video"] | None = None
    environment: str = ""
    rotation: int = 0
    control_hz: float | None = None
    fps_label: float | None = None
    grippers: tuple[int, ...] | None = None
    gripper_open: tuple[float, ...] = ()
    gripper_closed: tuple[float, ...] = ()
    position: tuple[int, ...] = ()
    orientation: tuple[int, ...] = ()
    fingers: tuple[int, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column a dataset of this layout must have."""
        return (self.state, self.action, *self.video_columns)

    @property
    def video_columns(self) -> tuple[str, ...]:
        """The columns of which a dataset's video is read."""
        return (*self.cameras.values(), *INDEX_COLUMNS)


def layouts() -> dict[str, Layout]:
    """The known layouts by name."""
    folder = resources.files("wmjax.data.formats.lerobot") / "layouts"
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".toml")), key=lambda f: f.name)
    found = [Layout(**tomllib.loads(file.read_text(encoding="utf-8"))) for file in files]
    return {layout.name: layout for layout in found}


def load_layout(name: str) -> Layout:
    """The layout of that name, or of a ``.toml`` file with the fields of :class:`Layout`.

    Raises:
        UserError: unknown name, no such file, or a file with other fields.

    """
    if name.endswith(".toml"):
        return _read_layout(expand(name))
    known = layouts()
    if name not in known:
        raise unknown_name("layout", name, known)
    return known[name]


def _read_layout(path: Path) -> Layout:
    values = read_toml(path, dict[str, Any], "give a readable TOML file")
    for field in dataclasses.fields(Layout)[1:4]:
        if not values.get(field.name):
            raise UserError(f"layout {path}: {field.name} is missing; name its column, of [cameras] at least one")
    return build(Layout, {"name": path.stem, **values}, f"layout {path}: ")


def choose_layout(features: Mapping[str, Mapping[str, Any]], where: str) -> Layout:
    """The known layout whose columns a dataset has, else one of LeRobot's own column names.

    Of several known ones it is that which stores its images as the dataset does.

    Args:
        features: of the dataset's ``info.json``: ``dtype`` and ``shape`` of every column.
        where: the dataset, for the error.

    Raises:
        UserError: none fits; names what LeRobot's own column names would need.

    """
    matching = [layout for layout in layouts().values() if _matches(layout, features)]
    if matching:
        return min(matching, key=lambda layout: _other_storage(layout, features))
    images = [key for key, feature in features.items() if feature.get("dtype") in ("image", "video")]
    layout = Layout(
        name="LeRobot",
        state="observation.state",
        action="action",
        cameras={key.removeprefix("observation.").removeprefix("images."): key for key in images},
    )
    missing = [column for column in layout.columns if column not in features] + ([] if images else ["of images"])
    if missing:
        raise UserError(
            f"{where}: columns {', '.join(missing)} are missing (the dataset has {', '.join(sorted(features))}); add "
            "them, or say which columns to read in a TOML file and name it with --layout"
        )
    return layout


def video_layout(features: Mapping[str, Mapping[str, Any]], cameras: Sequence[str], where: str) -> Layout:
    """The layout of a dataset of which only the video is read.

    Args:
        features: of the dataset's ``info.json``.
        cameras: our names of those that are needed.
        where: the dataset, for the error.

    Raises:
        UserError: a camera is missing; names the columns of images that there are.

    """
    images = [key for key, feature in features.items() if feature.get("dtype") in ("image", "video")]
    named = {key.removeprefix("observation.").removeprefix("images."): key for key in images}
    for layout in layouts().values():
        if all(layout.cameras.get(name) in images for name in cameras):
            return dataclasses.replace(layout, cameras={name: layout.cameras[name] for name in cameras})
    if missing := [name for name in cameras if name not in named]:
        raise UserError(
            f"{where}: no column of images is the camera {', '.join(missing)} (there are {', '.join(images)}); name "
            "the columns in the [cameras] of a TOML file, and that file with --layout"
        )
    return Layout("LeRobot", "observation.state", "action", {name: named[name] for name in cameras})


def _matches(layout: Layout, features: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether a dataset has the columns of a known layout, and state and actions of the environment's size."""
    if any(column not in features for column in layout.columns):
        return False
    environment = ENVIRONMENTS.resolve(layout.environment)
    sizes = {layout.state: environment.observation_spec.state_dim, layout.action: environment.action_spec.dim}
    return all(list(features[column].get("shape", ())) == [size] for column, size in sizes.items())


def _other_storage(layout: Layout, features: Mapping[str, Mapping[str, Any]]) -> int:
    """The number of cameras that a dataset stores in another way."""
    stored = (features.get(column, {}).get("dtype") for column in layout.cameras.values())
    return sum(kind != layout.images for kind in stored)


def require_columns(layout: Layout, columns: Iterable[str], where: str, *, video_only: bool = False) -> None:
    """Refuses a dataset that does not fit a chosen layout.

    Raises:
        UserError: names the missing columns.

    """
    missing = sorted(set(layout.video_columns if video_only else layout.columns) - set(columns))
    if missing:
        raise UserError(f"{where}: columns {', '.join(missing)} of layout {layout.name} are missing; choose another")
