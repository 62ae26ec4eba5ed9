"""One evaluation over several processes or hosts: each runs a shard, and the last one to end writes the table.

    OUT/shards/0-of-4/     header.json, episodes.jsonl, summary.json of one shard
    OUT/                   the same files for all episodes once all shards are done, as one process would write them

All processes must see the folder. Episodes that a shard finished count for all of them, so an evaluation may be
resumed with another number of shards, or with none. This module does not import jax.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from wmjax.core.errors import UserError
from wmjax.core.paths import listed
from wmjax.core.shards import UNSHARDED, Shard, check_shard
from wmjax.rollout.results import (
    EpisodeRecord,
    Results,
    actions_path,
    read_header,
    read_records,
    require_same_header,
)
from wmjax.sim.episode import EpisodeId


def part(episodes: Sequence[EpisodeId], shard: Shard) -> list[EpisodeId]:
    """The episodes of a shard: a contiguous range, because a worker that changes its task rebuilds the simulation."""
    index, count = check_shard(shard)
    return list(episodes[len(episodes) * index // count : len(episodes) * (index + 1) // count])


def shard_folder(out: Path, shard: Shard) -> Path:
    """The results folder of a shard; ``out`` itself if there is only one."""
    return out if shard == UNSHARDED else out / "shards" / f"{shard[0]}-of-{shard[1]}"


def shard_folders(out: Path) -> list[Path]:
    """The folders of all existing shards."""
    return [path for path in listed(out / "shards", "*-of-*") if re.fullmatch(r"\d+-of-\d+", path.name)]


def gather(out: Path, header: Mapping[str, Any]) -> dict[str, EpisodeRecord]:
    """All finished episodes by key: those of ``out`` and of every shard in it.

    Raises:
        UserError: a shard is one of another evaluation, or damaged.

    """
    found: dict[str, EpisodeRecord] = {}
    for folder in (out, *shard_folders(out)):
        records = read_records(folder, torn=True)
        if records:
            require_same_header(read_header(folder), header, folder)
        for record in records:
            found.setdefault(record.key, record)
    return found


def read_actions(out: Path, key: str) -> Float32[np.ndarray, "steps action"]:
    """What an episode of an evaluation executed, whichever shard ran it.

    Raises:
        UserError: it is not there, or damaged.

    """
    places = (actions_path(folder, key) for folder in (out, *shard_folders(out)))
    path = next((path for path in places if path.is_file()), None)
    if path is None:
        raise UserError(f"{out}: the actions of {key} are missing; evaluate again into another folder")
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{path}: damaged ({error}); evaluate again into another folder") from error


def merge(results: Results, records: Mapping[str, EpisodeRecord], order: Sequence[EpisodeId]) -> None:
    """Writes the episodes of all shards as the results of the whole evaluation, in the protocol's order.

    Two shards that end at the same moment may both do this, because they write the same bytes.
    """
    keys = [episode.key for episode in order]
    surplus = sorted(set(records) - set(keys))
    results.replace([records[key] for key in (*keys, *surplus) if key in records])
