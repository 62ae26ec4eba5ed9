"""The interface of dataset formats, which convert demonstrations in files to a training store.

A format is one class. It says whether a path is its own, and converts it. ``convert.format`` names it, by a name of
:data:`FORMATS` or as ``package.module:Class``; with ``auto`` the registered formats are tried in their order.
``docs/extending.md`` shows how to add one.
"""

import abc
import dataclasses
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from wmjax.core.errors import UserError
from wmjax.core.registry import Registry
from wmjax.core.settings import Count, Depth, Range, Settings
from wmjax.data.formats.importer import Gripper, Progress
from wmjax.data.store import TrainingStore

AUTO = "auto"
Rows = Literal["after", "before"]
"""Whether row j of the observations was taken after action j, or before it."""


@dataclasses.dataclass(frozen=True)
class ConvertSettings(Settings, section="convert"):
    """The settings of a conversion.

    Attributes:
        image_size: pixels.
        frame_stride: control steps per frame.
        max_episodes: convert only this many, the first ones; None converts all.
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
        format: a name of :data:`FORMATS`, ``package.module:Class``, or ``auto``: the first whose own the data are.

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
    rows: Rows | None = None
    format: str = AUTO


class DatasetFormat(abc.ABC):
    """A format in which demonstrations are stored in files."""

    title: ClassVar[str] = "data of another format"
    """What data of the format are called, such as ``LeRobot datasets``."""
    options: ClassVar[tuple[str, ...]] = ()
    """Settings that not every format has, and that this one takes."""

    @classmethod
    @abc.abstractmethod
    def recognises(cls, data: str) -> bool:
        """Whether a path, or a hub id, holds data of this format."""

    @classmethod
    @abc.abstractmethod
    def convert(cls, data: str, out: Path, settings: ConvertSettings, progress: Progress) -> TrainingStore:
        """Converts the data, by :func:`wmjax.data.formats.importer.convert_episodes`.

        Args:
            data: a folder, a file, or a hub id.
            out: the training store to write; an interrupted conversion resumes there.
            settings: those that every format has, and its ``options``; the others are at their defaults.
            progress: called with the number of finished episodes, and of all.

        Raises:
            UserError: data that cannot be converted.

        """


FORMATS: Registry[DatasetFormat] = Registry(
    "convert.format",
    {
        "libero_hdf5": "wmjax.data.formats.libero_hdf5:LiberoHDF5",
        "lerobot": "wmjax.data.formats.lerobot.format:LeRobot",
    },
    DatasetFormat,  # type: ignore[type-abstract]
)
"""The formats that have a name, in the order in which ``auto`` asks them."""
SPECIFIC = ("layout", "grippers", "select", "revision", "video_only", "rows")
"""The settings that not every format has."""


def choose_format(data: str, settings: ConvertSettings) -> type[DatasetFormat]:
    """The format that the settings name, or the one that recognises the data.

    Raises:
        UserError: no such format, none that recognises the data, or a setting that the format does not have.

    """
    if settings.format != AUTO:
        chosen = FORMATS.resolve(settings.format)
    else:
        chosen = next(found for name in FORMATS.known if (found := FORMATS.resolve(name)).recognises(data))
    for name in SPECIFIC:
        if name not in chosen.options and getattr(settings, name) is not None:
            owners = [found.title for known in FORMATS.known if name in (found := FORMATS.resolve(known)).options]
            raise UserError(
                f"--{name.replace('_', '-')} is for {' and '.join(owners)}, {data} is converted as {chosen.title} are; "
                "leave it out"
            )
    return chosen
