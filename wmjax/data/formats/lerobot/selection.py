"""The part of a LeRobot dataset that is converted: some of its cameras, episodes and tasks."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from wmjax.core.errors import UserError, unknown_name
from wmjax.data.formats.lerobot.dataset import EpisodeEntry, LeRobotDataset
from wmjax.data.formats.lerobot.layout import Layout

FORM = "write --select cameras=NAME,NAME episodes=0:20,25 tasks=0,2, or some of these"


@dataclasses.dataclass(frozen=True)
class Selection:
    """What is converted; None means all.

    Attributes:
        cameras: our names, in the order that they get.
        episodes, tasks: by the dataset's own numbers.

    """

    cameras: tuple[str, ...] | None = None
    episodes: tuple[range, ...] | None = None
    tasks: tuple[range, ...] | None = None

    def open(self, folder: Path, layout: Layout | None) -> LeRobotDataset:
        """The dataset with the chosen cameras only; the others are not read.

        Raises:
            UserError: it cannot be read, or has no such camera.

        """
        dataset = LeRobotDataset(folder, layout)
        if self.cameras is None:
            return dataset
        known = dataset.layout.cameras
        for name in self.cameras:
            if name not in known:
                raise unknown_name("camera of --select", name, known)
        chosen = dataclasses.replace(dataset.layout, cameras={name: known[name] for name in self.cameras})
        return LeRobotDataset(folder, chosen)

    def entries(self, dataset: LeRobotDataset) -> list[EpisodeEntry]:
        """The chosen episodes.

        Raises:
            UserError: an episode or a task that the dataset does not have, or nothing is left.

        """
        numbers = {entry.index for entry in dataset.episodes}
        for what, wanted, known in (("episodes", self.episodes, numbers), ("tasks", self.tasks, set(dataset.tasks))):
            missing = [end for part in wanted or () for end in (part[0], part[-1]) if end not in known]
            if missing:
                there = f"{min(known)} to {max(known)}" if known else "none"
                raise UserError(f"--select {what}: {dataset.folder} has no {missing[0]}, but {there}; choose of these")
        found = [entry for entry in dataset.episodes if self.episodes is None or _holds(self.episodes, entry.index)]
        if self.tasks is not None:
            found = [entry for entry in found if _holds(self.tasks, dataset.task(entry)[0])]
        if not found:
            raise UserError(f"--select leaves no episode of {dataset.folder}; {FORM}")
        return found


def parse_selection(words: Sequence[str]) -> Selection:
    """A selection from words such as ``cameras=top,wrist``, ``episodes=0:20,25`` and ``tasks=0,2``.

    Raises:
        UserError: another word, one that is given twice, or no numbers.

    """
    values: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if name not in ("cameras", "episodes", "tasks") or not equals or not value or name in values:
            raise UserError(f"--select has {word!r}; {FORM}, each once")
        values[name] = value
    cameras = tuple(values["cameras"].split(",")) if "cameras" in values else None
    if cameras is not None and len(set(cameras)) < len(cameras):
        raise UserError(f"--select cameras={values['cameras']} names a camera twice; {FORM}")
    numbers = {name: _numbers(name, values[name]) for name in ("episodes", "tasks") if name in values}
    return Selection(cameras, **numbers)


def _numbers(name: str, text: str) -> tuple[range, ...]:
    """``0:3,7`` as the ranges of 0, 1, 2 and of 7."""
    found = []
    for part in text.split(","):
        first, colon, end = part.partition(":")
        numbers = first.isdecimal() and (end.isdecimal() or not colon)
        span = range(int(first), int(end) if colon else int(first) + 1) if numbers else range(0)
        if not span:
            raise UserError(f"--select {name}={text}: {part!r} is neither a number nor a range such as 0:20; {FORM}")
        found.append(span)
    return tuple(found)


def _holds(spans: Sequence[range], number: int) -> bool:
    return any(number in span for span in spans)
