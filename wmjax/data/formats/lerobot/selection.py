"""The part of a LeRobot dataset that is converted: some of its cameras, episodes and tasks.

What becomes an episode of the store is a piece: consecutive rows of an episode that have one task. Most episodes are
one piece; one whose ``task_index`` changes is split at each change.
"""

import dataclasses
import itertools
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from wmjax.core.errors import UserError, unknown_name
from wmjax.data.formats.lerobot.dataset import EpisodeEntry, LeRobotDataset
from wmjax.data.formats.lerobot.layout import Layout

FORM = "write --select cameras=NAME,NAME episodes=0:20,25 tasks=0,2, or some of these"


@dataclasses.dataclass(frozen=True)
class Piece:
    """Consecutive rows of an episode that have one task."""

    entry: EpisodeEntry
    rows: range

    @property
    def whole(self) -> bool:
        """Whether it has all rows of its episode."""
        return len(self.rows) == self.entry.length

    @property
    def name(self) -> str:
        """Unique within a dataset; sorted by it, pieces keep their order."""
        name = f"episode-{self.entry.index:06d}"
        return name if self.whole else f"{name}-row-{self.rows.start:06d}"


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

    def pieces(self, dataset: LeRobotDataset, max_episodes: int | None = None) -> list[Piece]:
        """The pieces of the chosen episodes that are of the chosen tasks.

        An episode whose tasks cannot be read counts as one piece of a chosen task: whoever reads it is told why.

        Args:
            dataset: the source.
            max_episodes: of only the first so many episodes that have such a piece.

        Raises:
            UserError: an episode or a task that the dataset does not have, or nothing is left.

        """
        self._require_known(dataset)
        chosen = (entry for entry in dataset.episodes if self.episodes is None or _holds(self.episodes, entry.index))
        parts = filter(None, (self._of_tasks(pieces_of(dataset, entry)) for entry in chosen))
        found = list(itertools.islice(parts, max_episodes))
        if not found:
            raise UserError(f"--select leaves no episode of {dataset.folder}; {FORM}")
        if several := [pieces for pieces in found if not pieces[0].whole]:
            text = "%s: %d of %d episodes have several tasks: split where the task changes, they give %d episodes%s"
            counts = len(several), len(found), sum(map(len, several))
            chosen_tasks = "" if self.tasks is None else " of the selected tasks"
            logging.getLogger("wmjax").warning(text, dataset.folder, *counts, chosen_tasks)
        return list(itertools.chain.from_iterable(found))

    def _of_tasks(self, pieces: list[tuple[Piece, int | None]]) -> list[Piece]:
        return [piece for piece, task in pieces if self.tasks is None or task is None or _holds(self.tasks, task)]

    def _require_known(self, dataset: LeRobotDataset) -> None:
        """Refuses numbers that the dataset does not have."""
        numbers = {entry.index for entry in dataset.episodes}
        for what, wanted, known in (("episodes", self.episodes, numbers), ("tasks", self.tasks, set(dataset.tasks))):
            missing = [end for part in wanted or () for end in (part[0], part[-1]) if end not in known]
            if missing:
                there = f"{min(known)} to {max(known)}" if known else "none"
                raise UserError(f"--select {what}: {dataset.folder} has no {missing[0]}, but {there}; choose of these")


def pieces_of(dataset: LeRobotDataset, entry: EpisodeEntry) -> list[tuple[Piece, int | None]]:
    """The pieces of an episode in order, and the task of each; one without a task if they cannot be read."""
    try:
        tasks = dataset.task_index(entry)
    except UserError:  # the episode's own reader says it, and may leave the episode out
        return [(Piece(entry, range(entry.length)), None)]
    starts = [0, *(np.flatnonzero(np.diff(tasks)) + 1).tolist()]
    ends = [*starts[1:], len(tasks)]
    return [(Piece(entry, range(start, end)), int(tasks[start])) for start, end in zip(starts, ends, strict=True)]


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
