"""Statistics of columns, and the normalisation of actions, states and latents made from them."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, cast, get_args

import numpy as np
from jaxtyping import Bool, Float, Float64

from wmjax.core.errors import UserError
from wmjax.core.specs import ActionSpec, EncoderSpec, ObservationSpec
from wmjax.data.labels import chunk_labels, label_ends
from wmjax.data.store import TrainingStore

MIN_ACTION_SCALE = 0.02
"""Actions that never move more than 2 % of their range are not blown up to unit scale: that would be noise."""
MIN_STATE_SCALE = 0.005
"""Metres and radians."""
LATENT_EPSILON = 1e-4

Normalisation = Literal["none", "mean_std", "quantile"]
Array = Any
"""A numpy or jax array; this module must not import jax."""


class RunningMoments:
    """Count, mean, standard deviation, minimum and maximum of rows seen in any number of updates.

    Batches are merged by the pairwise update of Chan, Golub and LeVeque (1979) in float64. The standard
    deviation is the population's, as in numpy and LeRobot.
    """

    def __init__(self, dim: int) -> None:
        self.count = 0
        self.mean = np.zeros(dim)
        self._squares = np.zeros(dim)
        self.min = np.full(dim, np.inf)
        self.max = np.full(dim, -np.inf)

    def update(self, rows: Float[np.ndarray, "*n dim"]) -> None:
        """Adds rows; leading axes are flattened."""
        rows = rows.reshape(-1, rows.shape[-1]).astype(np.float64)
        if not len(rows):
            return
        mean, total = rows.mean(axis=0), self.count + len(rows)
        delta = mean - self.mean
        self._squares += ((rows - mean) ** 2).sum(axis=0) + delta**2 * (self.count * len(rows) / total)
        self.mean = self.mean + delta * (len(rows) / total)
        self.count = total
        self.min = np.minimum(self.min, rows.min(axis=0))
        self.max = np.maximum(self.max, rows.max(axis=0))

    @property
    def std(self) -> Float64[np.ndarray, " dim"]:
        """Population standard deviation."""
        return np.sqrt(self._squares / max(self.count, 1))


def merge_moments(
    means: Sequence[Sequence[float]], deviations: Sequence[Sequence[float]], counts: Sequence[int]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and population deviation of rows of which only each part's mean, deviation and number are known.

    The variance of all is the mean variance within the parts plus the variance of their means.
    """
    mean, deviation = np.asarray(means, np.float64), np.asarray(deviations, np.float64)
    share = np.asarray(counts, np.float64)[:, None] / sum(counts)
    whole = (share * mean).sum(axis=0)
    variance = (share * (deviation**2 + (mean - whole) ** 2)).sum(axis=0)
    return _floats(whole), _floats(np.sqrt(variance))


def without(
    mean: Sequence[float], std: Sequence[float], count: int, part: RunningMoments
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and population deviation of what remains of ``count`` rows without a part: undoes :func:`merge_moments`.

    Rounding of the whole's deviation grows with ``count`` over the number of rows that remain.
    """
    whole, variance = np.asarray(mean, np.float64), np.asarray(std, np.float64) ** 2
    rest = count - part.count
    remaining = whole + (whole - part.mean) * (part.count / rest)
    squares = count * variance - part.count * (part.std**2 + (part.mean - whole) ** 2)
    return _floats(remaining), _floats(np.sqrt(np.maximum(squares / rest - (remaining - whole) ** 2, 0.0)))


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Statistics of a column, each ``[dim]``. Quantiles are exact, not streamed, see :func:`column_statistics`."""

    count: int
    mean: np.ndarray
    std: np.ndarray
    min: np.ndarray
    max: np.ndarray
    q01: np.ndarray
    q99: np.ndarray


def column_statistics(store: TrainingStore, column: str, episodes: np.ndarray) -> Statistics:
    """Statistics of ``state``, ``action`` or ``executed`` over the control steps of some episodes.

    The moments are streamed. The quantiles are exact, which needs all values of one dimension at a time: 12 MB for
    10^6 control steps, less than half of the column itself, which an open store holds in memory anyway.

    Raises:
        UserError: no episodes.

    """
    values = getattr(store, column)
    entries = (store.episodes[int(index)] for index in episodes)
    rows = [values[entry["step_start"] : entry["step_start"] + entry["length"]] for entry in entries]
    if not rows:
        raise UserError(f"{store.folder}: 0 training episodes to take {column} statistics from; record more episodes")
    return _statistics(rows)


def label_statistics(store: TrainingStore, episodes: np.ndarray, chunk: int) -> Statistics:
    """Statistics of the actions that are learned: of the chunk labels where the store has them, else of ``action``.

    Raises:
        UserError: no episodes.

    """
    if store.action_chunk is None or not len(episodes):
        return column_statistics(store, "action", episodes)
    entries = (store.episodes[int(index)] for index in episodes)
    spans = (slice(entry["frame_start"], entry["frame_start"] + entry["num_frames"]) for entry in entries)
    chunks = [store.action_chunk[span, :chunk] for span in spans]
    return _statistics([part.reshape(-1, part.shape[-1]) for part in chunks])


def delta_statistics(
    store: TrainingStore, episodes: np.ndarray, chunk: int, delay: int, relative_to: tuple[int, ...]
) -> Statistics:
    """Statistics of the actions that are learned, as differences to the states at which their chunks are decided.

    Raises:
        UserError: no episodes.

    """
    if not len(episodes):
        return column_statistics(store, "action", episodes)
    ends, parts = label_ends(store), []
    for frames in np.array_split(np.flatnonzero(np.isin(store.frame_episode, episodes)), len(episodes)):
        actions, exists = chunk_labels(store, frames, chunk, delay, ends)
        state = store.state[store.frame_row[frames]]
        parts.append((actions - reference(state, relative_to))[exists])
    return _statistics(parts)


def delta_indices(names: Sequence[str], observation: ObservationSpec, action: ActionSpec) -> tuple[int, ...]:
    """Which value of the state each dimension of an action is a difference to, see ``ActionSpec.relative_to``.

    Args:
        names: ``ACTION`` for a dimension of the same name as its value of the state, ``ACTION=STATE`` for another
            name, or ``all`` alone for every dimension that the state has by name, but grippers.
        observation: names the state's values.
        action: names the action's dimensions.

    Raises:
        UserError: a name that is not there or stands twice, a gripper, or values in other units.

    """
    setting, found = f"train.delta_actions is {', '.join(names)}", [-1] * action.dim
    if tuple(names) == ("all",):
        names = [action.names[i] for i in action.arm if action.names[i] in observation.state]
        if not names:
            raise UserError(
                f"{setting}, but no dimension of the actions ({', '.join(action.names)}) has the name of a value of "
                f"the state ({', '.join(observation.state)}); give pairs ACTION=STATE"
            )
    for name in names:
        ours, _, theirs = name.partition("=")
        for part, known, what in ((ours, action.names, "actions"), (theirs or ours, observation.state, "state")):
            if part not in known:
                raise UserError(f"{setting}, but the {what} have no {part!r}; choose of {', '.join(known)}")
        mine, other = action.names.index(ours), observation.state.index(theirs or ours)
        if mine in action.grippers or found[mine] >= 0:
            why = "is a gripper command" if mine in action.grippers else "occurs twice"
            raise UserError(f"{setting}, but {ours!r} {why}; leave it out")
        if action.units[mine] != observation.state_units[other]:
            raise UserError(
                f"{setting}, but {ours!r} is in {action.units[mine]!r} as an action and in "
                f"{observation.state_units[other]!r} in the state; name targets in the units of the state only"
            )
        found[mine] = other
    return tuple(found) if names else ()


def _statistics(rows: list[np.ndarray]) -> Statistics:
    """Statistics of the rows of all parts."""
    moments = RunningMoments(rows[0].shape[1])
    for part in rows:
        moments.update(part)
    q01, q99 = np.stack([_quantiles([part[:, i] for part in rows]) for i in range(rows[0].shape[1])], axis=1)
    return Statistics(moments.count, moments.mean, moments.std, moments.min, moments.max, q01, q99)


def _quantiles(parts: list[np.ndarray]) -> np.ndarray:
    """The 1 % and the 99 % quantile of one dimension."""
    return np.quantile(np.concatenate(parts, dtype=np.float64), (0.01, 0.99), overwrite_input=True)


def action_spec(
    store: TrainingStore,
    train_episodes: np.ndarray,
    chunk: int,
    normalisation: str,
    deltas: Sequence[str] = (),
    delay: int = 0,
) -> ActionSpec:
    """The ActionSpec of a training run: statistics of the training episodes only.

    ``quantile`` maps [q01, q99] to [-1, 1], ``mean_std`` to zero mean and unit deviation; a gripper command becomes -1
    where it opens and +1 where it closes. Scales below ``MIN_ACTION_SCALE`` and ``MIN_STATE_SCALE`` are raised to them.

    Args:
        store: the training store.
        train_episodes: indices of its episodes.
        chunk: control steps of a chunk.
        normalisation: its kind.
        deltas: see :func:`delta_indices`.
        delay: control steps between a state and the first action of its chunk; differences grow with it.

    Raises:
        UserError: unknown normalisation, no training episodes, none that is longer than the delay, wrong names of
            differences.

    """
    if normalisation not in get_args(Normalisation):
        raise UserError(f"normalisation is {normalisation!r}; choose one of {', '.join(get_args(Normalisation))}")
    longest = max((store.episodes[int(index)]["length"] for index in train_episodes), default=delay + 1)
    if longest <= delay:
        raise UserError(
            f"train.delay is {delay}, but the longest training episode of {store.folder} has {longest} control steps, "
            "and so no action that long after a state; use a shorter delay"
        )
    kind = cast(Normalisation, normalisation)
    raw = store.action_spec
    relative_to = delta_indices(deltas, store.spec, raw)
    if relative_to:
        learned = delta_statistics(store, train_episodes, chunk, delay, relative_to)
    else:
        learned = label_statistics(store, train_episodes, chunk)
    offset, scale = _affine(learned, kind, MIN_ACTION_SCALE)
    for index, opened, closed in zip(raw.grippers, raw.gripper_open, raw.gripper_closed, strict=True):
        offset[index], scale[index] = (opened + closed) / 2, (closed - opened) / 2
    state_offset, state_scale = _affine(column_statistics(store, "state", train_episodes), kind, MIN_STATE_SCALE)
    return dataclasses.replace(
        raw,
        chunk=chunk,
        normalisation=kind,
        offset=_floats(offset),
        scale=_floats(scale),
        state_offset=_floats(state_offset),
        state_scale=_floats(state_scale),
        relative_to=relative_to,
    )


def _affine(statistics: Statistics, normalisation: Normalisation, floor: float) -> tuple[np.ndarray, np.ndarray]:
    """Offset and scale of ``(x - offset) / scale``."""
    if normalisation == "none":
        return np.zeros_like(statistics.mean), np.ones_like(statistics.mean)
    if normalisation == "mean_std":
        return statistics.mean, np.maximum(statistics.std, floor)
    return (statistics.q01 + statistics.q99) / 2, np.maximum((statistics.q99 - statistics.q01) / 2, floor)


def _floats(values: np.ndarray) -> tuple[float, ...]:
    """Float32 values as Python floats, so that a spec read back from JSON is equal to the one in memory."""
    return tuple(np.asarray(values, np.float32).tolist())


def _row(values: tuple[float, ...]) -> np.ndarray:
    """A spec's numbers as a float32 row, so that nothing is promoted to float64."""
    return np.asarray(values, np.float32)


def normalise_action(
    action: Float[Array, "*batch steps action"], spec: ActionSpec, state: Float[Array, "*batch state"]
) -> Float[Array, "*batch steps action"]:
    """Raw actions to normalised ones, with the grippers moved behind the other dimensions; numpy or jax.

    Args:
        action: the chunk, raw.
        spec: with the normalisation.
        state: raw, at which the chunk is decided; it matters where ``spec.relative_to`` names its values.

    """
    values = action - reference(state, spec.relative_to) if spec.relative_to else action
    values = (values - _row(spec.offset)) / _row(spec.scale) if spec.scale else values
    return values if _is_ordered(spec) else values[..., np.array(spec.arm + spec.grippers)]


def denormalise_action(
    action: Float[Array, "*batch steps action"], spec: ActionSpec, state: Float[Array, "*batch state"]
) -> Float[Array, "*batch steps action"]:
    """Inverse of :func:`normalise_action`; does not clip."""
    values = action if _is_ordered(spec) else action[..., np.argsort(spec.arm + spec.grippers)]
    values = values * _row(spec.scale) + _row(spec.offset) if spec.scale else values
    return values + reference(state, spec.relative_to) if spec.relative_to else values


def reference(state: Float[Array, "*batch state"], relative_to: tuple[int, ...]) -> Float[Array, "*batch 1 action"]:
    """What is subtracted from every action of a chunk: the state's value of each dimension, 0 where there is none."""
    index = np.array(relative_to)
    return state[..., None, np.maximum(index, 0)] * (index >= 0).astype(np.float32)


def _is_ordered(spec: ActionSpec) -> bool:
    """Whether the grippers are the last dimensions already."""
    return spec.arm + spec.grippers == tuple(range(spec.dim))


def clip_action(action: Float[Array, "*batch action"], spec: ActionSpec) -> Float[Array, "*batch action"]:
    """A raw action within its bounds, if it has any; numpy or jax."""
    return action.clip(_row(spec.low), _row(spec.high)) if spec.low else action


def closing(action: Float[Array, "*batch action"], spec: ActionSpec) -> Bool[Array, "*batch grippers"]:
    """Whether a raw action commands each gripper to close, rather than to open; numpy or jax."""
    opened, closed = _row(spec.gripper_open), _row(spec.gripper_closed)
    commands = action[..., np.array(spec.grippers, int)]
    return (commands - (opened + closed) / 2) * (closed - opened) > 0.0


def normalise_state(state: Float[Array, "*batch state"], spec: ActionSpec) -> Float[Array, "*batch state"]:
    """Raw state to normalised state, numpy or jax."""
    return (state - _row(spec.state_offset)) / _row(spec.state_scale) if spec.state_scale else state


def denormalise_state(state: Float[Array, "*batch state"], spec: ActionSpec) -> Float[Array, "*batch state"]:
    """Inverse of :func:`normalise_state`."""
    return state * _row(spec.state_scale) + _row(spec.state_offset) if spec.state_scale else state


def same_statistics(a: EncoderSpec, b: EncoderSpec) -> bool:
    """Whether two specs have the channel statistics of the same latents, up to the rounding of their computation."""
    pairs = (a.mean, b.mean), (a.std, b.std)
    return all(len(x) == len(y) and np.allclose(x, y, rtol=1e-5, atol=1e-6) for x, y in pairs)


def normalise_latents(latents: Float[Array, "*batch dim"], spec: EncoderSpec) -> Float[Array, "*batch dim"]:
    """Raw latents (any float dtype) to float32 of zero mean and unit deviation per channel, numpy or jax."""
    return (latents.astype(np.float32) - _row(spec.mean)) / (_row(spec.std) + np.float32(LATENT_EPSILON))


def denormalise_latents(latents: Float[Array, "*batch dim"], spec: EncoderSpec) -> Float[Array, "*batch dim"]:
    """Inverse of :func:`normalise_latents` (float32)."""
    return latents * (_row(spec.std) + np.float32(LATENT_EPSILON)) + _row(spec.mean)
