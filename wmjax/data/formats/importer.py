"""The conversion that every dataset format shares: episodes are written as parts, then merged into a training store."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from wmjax.core.errors import UserError
from wmjax.core.files import MANIFEST, claim_plan, hash_json
from wmjax.core.specs import ActionSpec, ObservationSpec, to_dict
from wmjax.data.episode import EpisodeData
from wmjax.data.store import PARTS, TrainingStore, finalize, part_names, write_part

PLAN = "plan.json"
Progress = Callable[[int, int], None]
"""Called with the number of finished episodes, and of all."""


def refuse_finished(out: Path) -> None:
    """Refuses to write where a finished store is, before anything is read or downloaded.

    Parts that a conversion killed at its very end left beside the store are removed.

    Raises:
        UserError: there is one.

    """
    if (Path(out) / MANIFEST).exists():
        if (Path(out) / PARTS / PLAN).exists():  # killed between the two last lines of convert_episodes
            shutil.rmtree(Path(out) / PARTS)
        raise UserError(f"{out}: holds a finished store already, nothing was overwritten; choose a new folder")


def convert_episodes(
    out: Path,
    spec: ObservationSpec,
    action: ActionSpec,
    source: Mapping[str, Any],
    episodes: Mapping[str, Callable[[], EpisodeData]],
    progress: Progress,
) -> TrainingStore:
    """Writes a training store; interrupted, it resumes where it stopped.

    Args:
        out: the training store to be.
        spec: the observations of every episode.
        action: the actions of every episode.
        source: what identifies the source, as JSON values; another one, or other episodes of it, is refused in the
            same folder.
        episodes: what reads each episode, by the name of its part.
        progress: called after every episode.

    Raises:
        UserError: an episode that must not be trained on; ``out`` holds a store or another conversion.

    """
    refuse_finished(out)
    chosen = {"episodes": hash_json(list(episodes)), "observation_spec": to_dict(spec), "action_spec": to_dict(action)}
    claim_plan(out / PARTS / PLAN, {**source, **chosen}, "episodes")
    done = set(part_names(out))
    for number, (name, read) in enumerate(episodes.items(), 1):
        if name not in done:
            write_part(out, name, read(), spec, action)
        progress(number, len(episodes))
    store = finalize(out, spec, action)
    shutil.rmtree(out / PARTS)
    return store


def require_positive(image_size: int, frame_stride: int, max_episodes: int | None) -> None:
    """Refuses sizes that no observation has, and less than one episode.

    Raises:
        UserError: below 1.

    """
    if image_size < 1 or frame_stride < 1:
        raise UserError(f"image_size {image_size} and frame_stride {frame_stride} must be at least 1; raise them")
    if max_episodes is not None and max_episodes < 1:
        raise UserError(f"max_episodes is {max_episodes}; set it to at least 1, or leave it out for all")
