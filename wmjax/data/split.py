"""Training and validation episodes: split by episode, stratified by store and task, fixed by a seed."""

import collections
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, Int32

from wmjax.core.errors import UserError

VIDEO_ONLY = "video_only"
"""The mark of an episode of which only the video is used: it has no actions."""
SOURCE_ROW = "source_row"
"""The mark of an episode that is a part of its ``source_episode``: the row of that episode at which it begins."""
SPLIT_SEED = 0
"""The split's seed in every run, so that no training seed is trained on episodes that another is scored on."""
_Task = tuple[int, str, int]
"""A store's number, a suite, and the number of a task in it."""


def split_episodes(
    episodes: Sequence[Mapping[str, Any]], validation: float, seed: int
) -> tuple[Int32[np.ndarray, " train"], Int32[np.ndarray, " validation"]]:
    """Splits a store's episodes so that no episode is on both sides and every task is on the training side.

    Each task is shuffled by a stream of its own (seed and task name), so adding a task leaves the others'
    split alone. A task gives ``round(validation * n)`` episodes to validation, at least one when it has two. In a union
    each store is split as it is alone. Episodes without actions are all trained on. The parts of an episode that was
    split at its changes of task count as one episode, of the first part's task, and stay on one side.

    Args:
        episodes: ``TrainingStore.episodes``.
        validation: fraction in [0, 1).
        seed: of the split.

    Returns:
        Sorted episode indices for training and validation.

    Raises:
        UserError: fraction out of range.

    """
    if not 0.0 <= validation < 1.0:
        raise UserError(f"validation is {validation}; choose a fraction of the episodes from 0 to below 1")
    recorded = _recorded_episodes([episode for episode in episodes if not episode.get(VIDEO_ONLY)])
    left = collections.Counter(task for parts in recorded.values() for task in {_task(part) for part in parts})
    groups: dict[_Task, list[int]] = {}
    for first, parts in recorded.items():
        groups.setdefault(_task(parts[0]), []).append(first)
    held_out: list[int] = []
    for (_, suite, task_id), firsts in groups.items():
        key = np.random.SeedSequence([seed, zlib.crc32(f"{suite}/{task_id}".encode())])
        order = np.random.Generator(np.random.Philox(key)).permutation(np.sort(firsts)).tolist()
        count = max(round(validation * len(order)), 1) if validation > 0 else 0
        for first in order:
            tasks = {_task(part) for part in recorded[first]}
            if count and all(left[task] > 1 for task in tasks):
                count -= 1
                left.subtract(tasks)
                held_out += [part["index"] for part in recorded[first]]
    chosen = np.isin(np.arange(len(episodes)), held_out)
    return np.flatnonzero(~chosen).astype(np.int32), np.flatnonzero(chosen).astype(np.int32)


def _recorded_episodes(episodes: Sequence[Mapping[str, Any]]) -> dict[int, list[Mapping[str, Any]]]:
    """The parts of each recorded episode in order, by the index of the first; most have one."""
    found: dict[int, list[Mapping[str, Any]]] = {}
    for first, episode in zip(recording_of(episodes).tolist(), episodes, strict=True):
        found.setdefault(first, []).append(episode)
    return found


def recording_of(episodes: Sequence[Mapping[str, Any]]) -> Int32[np.ndarray, " n"]:
    """For each episode the index of the first part of its recorded episode: its own, if it was not split.

    Parts of one recorded episode show the same scene, and the frames beside a change of task are nearly equal. What
    must not be seen twice (held-out rows, nearest frames, donors) is therefore kept apart by this number.

    Args:
        episodes: of ``TrainingStore.episodes``, all or some.

    """
    first: dict[tuple[int, Any], int] = {}
    found = [
        first.setdefault((episode.get("store", 0), episode["source_episode"]), episode["index"])
        if SOURCE_ROW in episode
        else episode["index"]
        for episode in episodes
    ]
    return np.array(found, np.int32)


def _task(episode: Mapping[str, Any]) -> _Task:
    return episode.get("store", 0), episode["suite"], episode["task_id"]


def video_only_episodes(
    episodes: Sequence[Mapping[str, Any]], train: Int[np.ndarray, " train"], labelled_per_task: int | None
) -> tuple[int, ...]:
    """The training episodes of which only the video is used: those without actions, and all but the first few per task.

    The episodes with actions of a smaller ``labelled_per_task`` are therefore among those of a larger one.

    Args:
        episodes: ``TrainingStore.episodes``.
        train: indices of the training episodes.
        labelled_per_task: of how many of each task actions are used, where there are any; None for all.

    Returns:
        Sorted episode indices.

    Raises:
        UserError: no task has more training episodes than that, or no episode has actions.

    """
    without = [int(index) for index in train if episodes[index].get(VIDEO_ONLY)]
    if len(without) == len(train):
        raise UserError("no training episode has actions; name a store that has some in data.paths, beside the video")
    if labelled_per_task is None:
        return tuple(sorted(without))
    by_task: dict[int, list[int]] = {}
    for index in sorted({int(index) for index in train} - set(without)):
        by_task.setdefault(episodes[index]["task"], []).append(index)
    cut = [index for indices in by_task.values() for index in indices[labelled_per_task:]]
    if not cut:
        raise UserError(
            f"data.labelled_per_task is {labelled_per_task}, but no task has more than "
            f"{max(map(len, by_task.values()))} training episodes, so all have actions; lower it, or leave it out"
        )
    return tuple(sorted(without + cut))
