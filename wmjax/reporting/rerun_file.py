"""An episode of a training store as a file of the Rerun viewer (https://rerun.io), which shows it along its time.

Below ``episode_N``: ``camera/NAME``, ``latents`` as colours, the scalars ``state``, ``action`` (the labels) and
``executed``, and with a policy's decisions ``policy/action``, ``policy/world`` and ``policy/imagined``. The timelines
are ``step``, the control step, and ``time`` in seconds.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32, Int, UInt8

from wmjax.core.errors import UserError
from wmjax.core.files import atomic_path
from wmjax.core.paths import require_place
from wmjax.data.latents import LatentStore
from wmjax.data.store import TrainingStore
from wmjax.reporting.video.latent_colours import LatentColours, on_grid, paint

if TYPE_CHECKING:  # imports jax
    from wmjax.policy.recorded_decisions import RecordedDecisions

JPEG_QUALITY = 92
CELL = 16
"""Pixels of a token's side; the viewer smooths what it enlarges."""


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Images along an episode, one for each of the control steps ``steps``."""

    steps: Int[np.ndarray, " n"]
    images: UInt8[np.ndarray, "n height width 3"]


@dataclasses.dataclass(frozen=True)
class Curves:
    """Numbers along an episode, one row for each of the control steps ``steps``, and a name for each column."""

    steps: Int[np.ndarray, " n"]
    values: Float32[np.ndarray, "n columns"]
    names: tuple[str, ...]


def episode_entities(
    store: TrainingStore,
    index: int,
    latents: LatentStore | None = None,
    decisions: "RecordedDecisions | None" = None,
) -> Iterator[tuple[str, Pictures | Curves]]:
    """What an episode's file holds, by path.

    Args:
        store: holds the episode.
        index: its number.
        latents: of the store; their colours are those of :mod:`wmjax.reporting.video.latent_colours`.
        decisions: of a policy on the episode.

    """
    episode, spec, action = store.episode(index), store.spec, store.action_spec
    steps, frames = np.arange(episode.length), np.asarray(episode.frame_step)
    for number, camera in enumerate(spec.cameras):
        yield f"camera/{camera}", Pictures(frames, np.asarray(episode.images[:, number]))
    if latents is not None:
        for name, colours in paint(latents, store, [index]).of(index).items():
            yield f"latents/{name}", Pictures(frames, _enlarged(colours))
    yield "state", Curves(steps, np.asarray(episode.state), spec.state)
    yield "action", Curves(steps, np.asarray(episode.action), action.names)
    yield "executed", Curves(steps, np.asarray(episode.executed), action.names)
    if episode.injected is not None:
        yield "injected", Curves(steps, np.asarray(episode.injected, np.float32)[:, None], ("injected failure",))
    if decisions is not None:
        yield from _decision_entities(decisions, frames, action.names)


def _decision_entities(
    decisions: "RecordedDecisions", frames: Int[np.ndarray, " f"], names: tuple[str, ...]
) -> Iterator[tuple[str, Pictures | Curves]]:
    yield "policy/action", Curves(frames, decisions.action, names)
    world = tuple(name for name in decisions.numbers if name.startswith("world/"))
    others = tuple(name for name in decisions.numbers if name not in world)
    for path, columns in (("policy/world", world), ("policy/memory", others)):
        if columns:
            yield path, Curves(frames, np.stack([decisions.numbers[name] for name in columns], 1), columns)
    if decisions.observed is not None and decisions.imagined is not None:
        # As in the videos of an evaluation: what never changes at a place of the grid is grey.
        place = decisions.observed.mean(0)
        colour = LatentColours.fit(decisions.observed - place)
        yield "policy/came", Pictures(frames, _enlarged(colour(on_grid(decisions.observed - place))))
        for ahead in range(decisions.imagined.shape[1]):
            cells = colour(on_grid(decisions.imagined[:, ahead] - place))
            yield f"policy/imagined/frame_{ahead + 1}_ahead", Pictures(frames, _enlarged(cells))


def write_rerun(
    path: Path,
    store: TrainingStore,
    indices: Sequence[int],
    latents: LatentStore | None = None,
    run: str | None = None,
) -> None:
    """Writes episodes of a training store to one file of the Rerun viewer, atomically.

    Args:
        path: the file, which ends in ``.rrd``.
        store: holds the episodes.
        indices: their numbers.
        latents: of the store, shown as colours.
        run: a run or policy that decides on the recorded frames (:mod:`wmjax.policy.recorded_decisions`).

    Raises:
        UserError: the package ``rerun-sdk`` is not installed, another ending, latents of another store, a policy of
            other observations, or the file cannot be written.

    """
    if path.suffix != ".rrd":
        raise UserError(f"--rerun {path}: the Rerun viewer opens files that end in .rrd; name one")
    require_place(path, "--rerun", "Rerun file")
    rerun = _require_rerun()
    if latents is not None:
        latents.check(store)
    decide = _decider(run, store)
    with atomic_path(path) as temporary:
        stream = rerun.RecordingStream("wmjax")
        stream.save(temporary)
        for index in indices:
            about = rerun.TextDocument(_about(store, index), media_type="text/markdown")
            stream.log(f"episode_{index}/about", about, static=True)
            for name, entity in episode_entities(store, index, latents, decide(index)):
                _log(rerun, stream, [f"episode_{index}", *name.split("/")], entity, store.spec.control_hz)
        stream.flush()
        stream.disconnect()


def _decider(run: str | None, store: TrainingStore) -> "Callable[[int], RecordedDecisions | None]":
    if run is None:
        return lambda index: None
    # Imports jax, which only a policy needs: recordings are shown without it.
    from wmjax.policy.recorded_decisions import decide_on_recording, load_for_recording

    policy = load_for_recording(run, store)
    return lambda index: decide_on_recording(policy, store, index)


def _require_rerun() -> Any:
    """The package, which is imported on use only.

    Raises:
        UserError: it is not installed.

    """
    try:
        import rerun
    except ImportError as error:
        raise UserError(f"--rerun needs the package rerun-sdk ({error}); pip install 'wmjax[rerun]'") from error
    return rerun


def _log(rerun: Any, stream: Any, parts: Sequence[str], entity: Pictures | Curves, rate: float) -> None:
    path = rerun.new_entity_path(list(parts))  # escapes what a name of a camera may hold
    if isinstance(entity, Pictures):
        for step, image in zip(entity.steps, entity.images, strict=True):
            stream.set_time("step", sequence=int(step))
            stream.set_time("time", duration=float(step) / rate)
            stream.log(path, rerun.Image(image).compress(jpeg_quality=JPEG_QUALITY))
        stream.reset_time()
        return
    times = [rerun.TimeColumn("step", sequence=entity.steps), rerun.TimeColumn("time", duration=entity.steps / rate)]
    stream.log(path, rerun.SeriesLines(names=list(entity.names)), static=True)
    stream.send_columns(path, indexes=times, columns=rerun.Scalars.columns(scalars=entity.values))


def _about(store: TrainingStore, index: int) -> str:
    entry = store.episodes[index]
    facts = {"store": f"{store.folder.name}, hash {store.hash}", "length": f"{entry['length']} control steps"}
    facts |= {name: entry[name] for name in ("suite", "task_id", "init", "seed", "success_step") if name in entry}
    lines = [f"- {name}: {value}" for name, value in facts.items() if value is not None]
    return "\n".join([f"# {entry['instruction']}", "", *lines])


def _enlarged(colours: UInt8[np.ndarray, "n rows columns 3"]) -> UInt8[np.ndarray, "n height width 3"]:
    return colours.repeat(CELL, 1).repeat(CELL, 2)
