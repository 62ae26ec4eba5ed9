"""Key layouts in TOML: which column of a LeRobot dataset is which camera, state and action."""

import dataclasses
import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from typing import Any, Literal

from wmjax.core.errors import UserError, unknown_name

INDEX_COLUMNS = ("episode_index", "frame_index", "task_index")


@dataclasses.dataclass(frozen=True)
class Layout:
    """Columns and conventions of a family of datasets.

    ``cameras`` maps our camera names, in order, to image columns, stored as ``images``; ``rotation`` is what they
    already had applied, in degrees; ``control_hz`` the true rate of the rows and ``fps_label`` what the metadata
    claims.
    """

    name: str
    state: str
    action: str
    images: Literal["image", "video"]
    rotation: int
    control_hz: int
    fps_label: int
    cameras: dict[str, str]

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column a dataset of this layout must have."""
        return (*self.cameras.values(), self.state, self.action, *INDEX_COLUMNS)


def layouts() -> dict[str, Layout]:
    """The known layouts by name."""
    folder = resources.files("wmjax.data.formats.lerobot") / "layouts"
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".toml")), key=lambda f: f.name)
    found = [Layout(**tomllib.loads(file.read_text())) for file in files]
    return {layout.name: layout for layout in found}


def load_layout(name: str) -> Layout:
    """The layout of that name.

    Raises:
        UserError: unknown name.

    """
    known = layouts()
    if name not in known:
        raise unknown_name("layout", name, known)
    return known[name]


def choose_layout(features: Mapping[str, Mapping[str, Any]], where: str) -> Layout:
    """The known layout whose columns a dataset has; of several, the one that stores its images as the dataset does.

    Args:
        features: of the dataset's ``info.json``: ``dtype`` of every column.
        where: the dataset, for the error.

    Raises:
        UserError: none fits; names what the nearest one misses.

    """
    known = layouts()
    missing = {name: [c for c in layout.columns if c not in features] for name, layout in known.items()}
    name = min(missing, key=lambda n: (len(missing[n]), _other_storage(known[n], features)))
    if missing[name]:
        raise UserError(
            f"{where}: columns {', '.join(missing[name])} are missing (layout {name}; the dataset has "
            f"{', '.join(sorted(features))}); add them, or add a layout file to wmjax/data/formats/lerobot/layouts"
        )
    return known[name]


def _other_storage(layout: Layout, features: Mapping[str, Mapping[str, Any]]) -> int:
    """The number of cameras that a dataset stores in another way."""
    stored = (features.get(column, {}).get("dtype") for column in layout.cameras.values())
    return sum(kind != layout.images for kind in stored)


def require_columns(layout: Layout, columns: Iterable[str], where: str) -> None:
    """Refuses a dataset that does not fit a chosen layout.

    Raises:
        UserError: names the missing columns.

    """
    missing = sorted(set(layout.columns) - set(columns))
    if missing:
        raise UserError(f"{where}: columns {', '.join(missing)} of layout {layout.name} are missing; choose another")
