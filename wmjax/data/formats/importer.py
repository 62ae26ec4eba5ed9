"""The conversion that every dataset format shares: episodes are written as parts, then merged into a training store."""

import logging
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float, Float32

from wmjax.core.errors import UserError
from wmjax.core.files import claim_plan, hash_bytes, hash_file, hash_json, owned
from wmjax.core.specs import ActionSpec, ObservationSpec, to_dict
from wmjax.core.store_files import MANIFEST
from wmjax.data.episode import EpisodeData, check_episode
from wmjax.data.store import PARTS, TrainingStore, finalize, part_names, write_part

PLAN = "plan.json"
Progress = Callable[[int, int], None]
"""Called with the number of finished episodes, and of all."""
WHOLE_BYTES, EDGE_BYTES = 4 << 20, 1 << 20
"""Source files up to this size are hashed whole; of larger ones this much of either end, and their time."""
ROUNDING = 1e-5
"""How far beyond its bounds an action may lie and still be one that was rounded."""
Gripper = Literal["open-negative", "open-positive", "open-one", "open-zero"]
"""What opens the gripper in a source: -1 as in LIBERO (commands stay the environment's own), +1, or of 0 and 1 one."""
FINGERS_METRES = 0.06
"""Fingers further from the middle (the Panda's are not) are taken to be no positions and say nothing."""
FOLLOWS = 8
"""Control steps in which the fingers follow a command."""
MOVED_METRES = 0.02


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
    *,
    skip_bad: bool = False,
) -> TrainingStore:
    """Writes a training store; interrupted, it resumes where it stopped.

    Args:
        out: the training store to be.
        spec: the observations of every episode.
        action: the actions of every episode.
        source: the identity of the source, as JSON values; another one, or other episodes of it, is refused in the
            same folder.
        episodes: the reader of each episode, by the name of its part.
        progress: called after every episode.
        skip_bad: leave out episodes that cannot be read or must not be trained on, and list them, with the reason, as
            ``skipped`` in the store's manifest.

    Raises:
        UserError: an episode that must not be trained on; ``out`` holds a store or another conversion.

    """
    refuse_finished(out)
    chosen = {"episodes": hash_json(list(episodes)), "observation_spec": to_dict(spec), "action_spec": to_dict(action)}
    with owned(out / PARTS, "conversion", "choose another folder with --out"):
        refuse_finished(out)  # another one may just have ended
        skipped = _write_parts(out, spec, action, {**source, **chosen}, episodes, progress, skip_bad)
        store = finalize(out, spec, action, skipped=skipped)
        shutil.rmtree(out / PARTS)
    return store


def _write_parts(
    out: Path,
    spec: ObservationSpec,
    action: ActionSpec,
    plan: Mapping[str, Any],
    episodes: Mapping[str, Callable[[], EpisodeData]],
    progress: Progress,
    skip_bad: bool,
) -> list[dict[str, str]]:
    """Writes the episodes that are not there yet; what was left out, and why."""
    done = set(part_names(out))
    if not done:  # an import that was refused before its first episode does not fix the settings
        (out / PARTS / PLAN).unlink(missing_ok=True)
    claim_plan(out / PARTS / PLAN, plan, "episodes")
    skipped: list[dict[str, str]] = []
    for number, (name, read) in enumerate(episodes.items(), 1):
        if name not in done:
            try:
                episode = read()
                check_episode(episode, spec, action, name)
            except UserError as error:
                if not skip_bad:
                    raise
                skipped.append({"episode": name, "reason": str(error)})
                logging.getLogger("wmjax").warning("%s is left out: %s", name, error)
            else:
                write_part(out, name, episode, spec, action)
        progress(number, len(episodes))
    if len(skipped) == len(episodes):
        raise UserError(f"no episode can be used: {skipped[0]['reason']}" if skipped else "no episodes")
    return skipped


def identify(folder: Path, files: Iterable[Path]) -> str:
    """A hash of source files by their content, so that a conversion never continues another source's.

    Large files are known by their size, time of modification and both ends.
    """
    known = []
    for path in sorted(set(files)):
        size = path.stat().st_size
        if size <= WHOLE_BYTES:
            look: list[Any] = [hash_file(path)]
        else:
            with path.open("rb") as file:
                head = file.read(EDGE_BYTES)
                file.seek(-EDGE_BYTES, 2)
                look = [hash_bytes(head + file.read()), path.stat().st_mtime_ns]
        known.append([str(path.relative_to(folder)), size, *look])
    return hash_json(known)


def prepare_action(
    action: Float32[np.ndarray, "n action"],
    state: Float32[np.ndarray, "n state"],
    gripper: Gripper,
    robot: ActionSpec,
    observation: ObservationSpec,
    where: str,
) -> Float32[np.ndarray, "n action"]:
    """A source's actions as those of an environment: rounding at the bounds removed, grippers in its own values.

    Args:
        action: as in the source.
        state: of the same rows; tells whether the fingers follow the commands.
        gripper: the source's convention; the first leaves commands as they are.
        robot: the environment's actions. Without bounds nothing is rounded, without grippers no command is changed.
        observation: the environment's observations, which say where the fingers are.
        where: the episode, for errors.

    Raises:
        UserError: commands that are not of that convention, or after which the fingers do the opposite.

    """
    if gripper not in get_args(Gripper):
        raise UserError(f"gripper is {gripper!r}; choose one of {', '.join(get_args(Gripper))}")
    if action.ndim != 2 or not action.size or action.shape[1] != robot.dim:
        return action  # refused by check_episode, which names both shapes
    action = _without_rounding(action, robot)
    if not robot.grippers:
        return action
    columns = list(robot.grippers)
    opened, closed = np.array(robot.gripper_open), np.array(robot.gripper_closed)
    command = action[:, columns].astype(float)
    _require_convention(command, gripper, bool((opened * closed < 0).all()), where)
    signed = {
        "open-negative": 2 * (command - opened) / (closed - opened) - 1, "open-positive": -command,
        "open-one": 1 - 2 * command, "open-zero": 2 * command - 1,
    }[gripper]  # fmt: skip
    if len(columns) == 1 and observation.fingers and state.shape == (len(action), observation.state_dim):
        _require_obeyed(signed[:, 0], state[:, list(observation.fingers)], where)
    if gripper != "open-negative":
        action = action.copy()
        action[:, columns] = opened + (signed + 1) / 2 * (closed - opened)
    return action.astype(np.float32)


def _without_rounding(action: Float32[np.ndarray, "n action"], robot: ActionSpec) -> Float32[np.ndarray, "n action"]:
    """Actions that lie beyond a bound by no more than rounding, at that bound."""
    if not (robot.low and robot.high):
        return action
    low, high = np.array(robot.low, action.dtype), np.array(robot.high, action.dtype)
    near = (action >= low - ROUNDING) & (action <= high + ROUNDING)
    return np.where(near, np.clip(action, low, high), action)


def _require_convention(command: Float[np.ndarray, "n grippers"], gripper: Gripper, signed: bool, where: str) -> None:
    """Refuses commands that a convention does not have; ``signed`` says that the environment's are of both signs."""
    if gripper == "open-negative" and signed and (command >= 0).all() and (command == 0).any():
        raise UserError(
            f"{where}: gripper commands lie in [0, 1], the environment's are -1 and +1; say what opens it with "
            "--gripper-convention open-one or open-zero"
        )
    if gripper in ("open-one", "open-zero") and ((command < 0) | (command > 1)).any():
        raise UserError(
            f"{where}: gripper commands lie outside [0, 1]; give --gripper-convention open-negative or open-positive"
        )


def _require_obeyed(command: Float[np.ndarray, " n"], fingers: Float32[np.ndarray, "n 2"], where: str) -> None:
    """Refuses an episode in which the fingers part when told to close (+1), and close when told to open (-1)."""
    if not np.abs(fingers).max() <= FINGERS_METRES:
        return
    width = np.abs(fingers).sum(axis=1)
    switches = np.flatnonzero(np.sign(command[1:]) != np.sign(command[:-1])) + 1
    later = np.minimum(switches + FOLLOWS, len(width) - 1)
    if float((np.sign(command[switches]) * (width[later] - width[switches])).sum()) > MOVED_METRES:
        raise UserError(
            f"{where}: the fingers part when told to close (+1), and close when told to open; give another "
            "--gripper-convention"
        )


def require_positive(image_size: int, frame_stride: int, max_episodes: int | None) -> None:
    """Refuses sizes that no observation has, and less than one episode.

    Raises:
        UserError: below 1.

    """
    if image_size < 1 or frame_stride < 1:
        raise UserError(f"image_size {image_size} and frame_stride {frame_stride} must be at least 1; raise them")
    if max_episodes is not None and max_episodes < 1:
        raise UserError(f"max_episodes is {max_episodes}; set it to at least 1, or leave it out for all")
