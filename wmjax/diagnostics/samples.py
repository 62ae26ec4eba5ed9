"""The samples that the references are computed from: latents, positions and actions of chosen frames of the stores.

Latents are those of the unshifted view, in the units and the shape that the Prophet predicts.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Float32, Int

from wmjax.core.specs import ActionSpec
from wmjax.data.labels import chunk_labels, undisturbed_between
from wmjax.data.latents import LatentStore
from wmjax.data.split import recording_of
from wmjax.data.statistics import closing, normalise_latents
from wmjax.data.store import TrainingStore
from wmjax.data.windows import chunk_indices, earlier_indices, future_indices, history_indices
from wmjax.models.vla import VLAConfig
from wmjax.models.world.config import Target
from wmjax.models.world.memory import prophet_latents
from wmjax.trainer.config import Inputs

TRAIN_FRAMES = 8000
"""Frames of the training split that references are fitted on, at most."""
LatentTransform = Callable[[np.ndarray], np.ndarray]
"""Normalised latents ``[n, frames, tokens, dim]`` in the Prophet's shape: pooled and layer-normed if it does so."""


class Place(NamedTuple):
    """The places of frames: their rows of the columns, and the bounds of their episodes in frames and in rows."""

    row: Int[np.ndarray, " n"]
    first_frame: Int[np.ndarray, " n"]
    end_frame: Int[np.ndarray, " n"]
    first_row: Int[np.ndarray, " n"]
    end_row: Int[np.ndarray, " n"]


def place(store: TrainingStore, frames: Int[np.ndarray, " n"]) -> Place:
    """Looks frames up in the table of episodes."""
    column = {
        name: np.array([episode[name] for episode in store.episodes])[store.frame_episode[frames]]
        for name in ("frame_start", "num_frames", "step_start", "length")
    }
    first_frame, first_row = column["frame_start"], column["step_start"]
    return Place(
        store.frame_row[frames],
        first_frame,
        first_frame + column["num_frames"],
        first_row,
        first_row + column["length"],
    )


def choose_frames(store: TrainingStore, episodes: np.ndarray, count: int, seed: int = 0) -> Int[np.ndarray, " n"]:
    """At most ``count`` frames of some episodes, drawn without replacement, in the store's order."""
    frames = np.flatnonzero(np.isin(store.frame_episode, episodes))
    if len(frames) <= count:
        return frames
    return np.sort(np.random.default_rng(seed).choice(frames, count, replace=False))


@dataclasses.dataclass(frozen=True)
class LatentWindows:
    """History up to now and future of frames; ``mask`` says which future frames exist and could be foreseen.

    ``position`` is the end effector's (m) now and at the future frames, ``rotation`` the first two columns of its
    rotation matrix (an axis-angle jumps at pi, about where LIBERO's hand is), ``episode`` the recorded episode of each
    frame (:func:`wmjax.data.split.recording_of`). A pose that the state does not contain has no values.
    """

    history: Float32[np.ndarray, "n history tokens dim"]
    future: Float32[np.ndarray, "n future tokens dim"]
    mask: Bool[np.ndarray, "n future"]
    position: Float[np.ndarray, "n 1+future xyz"]
    rotation: Float[np.ndarray, "n 1+future columns"]
    episode: Int[np.ndarray, " n"]

    @property
    def now(self) -> Float32[np.ndarray, "n tokens dim"]:
        """z(t)."""
        return self.history[:, -1]

    def take(self, rows: np.ndarray) -> "LatentWindows":
        """Some of the samples."""
        return LatentWindows(*(getattr(self, field.name)[rows] for field in dataclasses.fields(self)))

    def complete(self) -> "LatentWindows":
        """The samples whose whole future exists."""
        return self.take(np.flatnonzero(self.mask.all(1)))


def rotation_columns(vector: Float32[np.ndarray, "*shape xyz"]) -> Float32[np.ndarray, "*shape columns"]:
    """The first two columns of the matrix of a rotation vector (axis times angle, rad), by Rodrigues' formula.

    Nothing becomes nothing: a state without an orientation.
    """
    if not vector.shape[-1]:
        return vector
    angle = np.linalg.norm(vector, axis=-1)[..., None, None].astype(np.float64)
    axis = vector[..., None, :] / np.maximum(angle, 1e-12)
    cross = np.cross(np.eye(3), axis)  # the matrix that multiplies by the axis
    matrix = np.eye(3) + np.sin(angle) * cross + (1.0 - np.cos(angle)) * (cross @ cross)
    return np.concatenate([matrix[..., 0], matrix[..., 1]], axis=-1).astype(np.float32)


def latent_windows(
    inputs: Inputs,
    frames: Int[np.ndarray, " n"],
    history: int,
    future: int,
    transform: LatentTransform,
    target: Target = "future",
) -> LatentWindows:
    """Gathers the windows of frames.

    Args:
        inputs: the training store and its latents.
        frames: indices of the store's frames.
        history: frames up to and including each one.
        future: frames after each one.
        transform: brings normalised latents into the shape that the Prophet predicts.
        target: ``past`` replaces the future by the frames before the history, newest first.

    """
    assert isinstance(inputs.latents, LatentStore) and inputs.encoder_spec is not None
    store, table, spec = inputs.store, inputs.latents.latents, inputs.encoder_spec
    where = place(store, frames)
    past = history_indices(frames, where.first_frame, history)
    if target == "past":
        ahead, mask = earlier_indices(frames, where.first_frame, history, future)
    else:
        ahead, mask = future_indices(frames, where.end_frame, future)
    rows = store.frame_row[np.concatenate([frames[:, None], ahead], axis=1)]
    return LatentWindows(
        history=transform(normalise_latents(table[0, past], spec)),
        future=transform(normalise_latents(table[0, ahead], spec)),
        mask=mask & undisturbed_between(store, frames, ahead),
        position=store.state[rows][..., list(store.spec.position)],
        rotation=rotation_columns(store.state[rows][..., list(store.spec.orientation)]),
        episode=recording_of(store.episodes)[store.frame_episode[frames]],
    )


def training_windows(inputs: Inputs, model: VLAConfig) -> LatentWindows:
    """The windows that the Prophet of a model learns from, in its shape, of ``TRAIN_FRAMES`` frames at most."""

    def transform(latents: np.ndarray) -> np.ndarray:
        return np.asarray(prophet_latents(jnp.asarray(latents), model.prophet, model.world))

    frames = choose_frames(inputs.store, inputs.train_episodes, TRAIN_FRAMES)
    return latent_windows(inputs, frames, model.prophet.history, model.prophet.future, transform, model.memory.target)


@dataclasses.dataclass(frozen=True)
class ActionWindows:
    """The expert's chunks of frames, raw, as ``spec`` describes them, and the states at which they are decided.

    ``near_change`` marks chunk steps close to a change of each gripper's command, ``closed_before`` whether the command
    executed just before each frame closes it: what a policy that never changes its mind would repeat.
    """

    action: Float32[np.ndarray, "n chunk action"]
    mask: Bool[np.ndarray, "n chunk"]
    state: Float32[np.ndarray, "n state"]
    near_change: Bool[np.ndarray, "n chunk grippers"]
    closed_before: Bool[np.ndarray, "n grippers"]
    spec: ActionSpec
    task: Int[np.ndarray, " n"]


def action_windows(inputs: Inputs, frames: Int[np.ndarray, " n"], within: int = 2) -> ActionWindows:
    """Gathers the chunks of frames; a step is near a change if at most ``within`` control steps from it."""
    store, where = inputs.store, place(inputs.store, frames)
    rows, inside = chunk_indices(where.row + inputs.loader.delay, where.end_row, inputs.loader.chunk)
    action, mask = chunk_labels(store, frames, inputs.loader.chunk, inputs.loader.delay)
    closed = closing(store.action, store.action_spec)
    lengths = [episode["length"] for episode in store.episodes]
    near = np.concatenate([near_change(part, within) for part in np.split(closed, np.cumsum(lengths)[:-1])])
    # Before an episode's first step every gripper is taken to be open, as LIBERO's settling steps command.
    closed_before = closed[where.row - 1] & (where.row > where.first_row)[:, None]
    tasks = np.array([episode["task"] for episode in store.episodes])
    return ActionWindows(
        action=action,
        mask=mask,
        state=store.state[where.row],
        near_change=near[rows] & inside[..., None],
        closed_before=closed_before,
        spec=store.action_spec,
        task=tasks[store.frame_episode[frames]],
    )


def near_change(closed: Bool[np.ndarray, "steps grippers"], within: int = 2) -> Bool[np.ndarray, "steps grippers"]:
    """True for an episode's steps at most ``within`` from the first step of a new command, for each gripper."""
    near = np.zeros_like(closed)
    for before, gripper in np.argwhere(closed[1:] != closed[:-1]):
        near[max(0, before + 1 - within) : before + within + 2, gripper] = True
    return near
