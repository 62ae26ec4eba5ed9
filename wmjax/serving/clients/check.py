"""The check of a served policy's conventions: its answers to recorded observations, under each preset."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Float64

from wmjax.core.errors import UserError
from wmjax.data.labels import chunk_labels
from wmjax.data.store import TrainingStore
from wmjax.serving.clients.client import Client, View
from wmjax.serving.clients.conventions import PRESETS, Conventions, raw_actions
from wmjax.serving.clients.served_policy import as_expected, connected, require_same_robot, resolved
from wmjax.sim.episode import EpisodeId

MATCH_R2 = 0.3
"""Least R² of a dimension that follows the recordings; a policy on its own training data has 0.6 to 0.95."""
FOLLOWS = 0.5
"""Least absolute correlation above which a wrong sign, scale or offset is distinguished from noise."""
TIE = 0.01
"""Rows whose scores differ by less are reported as alike."""
LEAST = -99.0
"""Least R² that is printed: a dimension that hardly moves in the recordings has millions of it below zero."""
VARIATIONS: tuple[tuple[str, Any], ...] = (
    ("orientation", "turned"), ("orientation", "mirrored"), ("rotation", "robosuite"), ("rotation", "shortest"),
    ("state", "full"), ("state", "mean_finger"), ("state", "quaternion"), ("state", "none"),
)  # fmt: skip
"""Single conventions in which the best preset is varied; none has an effect on how actions are read."""
READING = ("preset", "gripper_open", "gripper_closed", "gripper_binary", "horizon", "wait_steps", "name", "timeout_s")
"""Conventions that do not change the observations that a policy receives."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One set of conventions.

    Attributes:
        name: of the preset, and what was changed in it.
        r2: of each action dimension; NaN where the recordings are constant. Empty if the server refused.
        correlation, slope: of the recorded values with the answered ones, and the recorded per answered unit.
        refused: what the server said instead of acting.

    """

    name: str
    r2: Float64[np.ndarray, " action"] = dataclasses.field(default_factory=lambda: np.zeros(0))
    correlation: Float64[np.ndarray, " action"] = dataclasses.field(default_factory=lambda: np.zeros(0))
    slope: Float64[np.ndarray, " action"] = dataclasses.field(default_factory=lambda: np.zeros(0))
    refused: str = ""

    @property
    def score(self) -> float:
        """The mean over the dimensions, each counted as -1 at worst."""
        known = self.r2[~np.isnan(self.r2)]
        return float(known.clip(-1).mean()) if len(known) else -np.inf


@dataclasses.dataclass(frozen=True)
class Check:
    """The tested conventions: presets, then the best of them with single conventions changed."""

    rows: Sequence[Row]
    names: Sequence[str]
    grippers: Sequence[int]
    observations: int
    note: str = ""

    @property
    def best(self) -> Row:
        """The row with the highest score."""
        return max(self.rows, key=lambda row: row.score)

    def table(self) -> str:
        """One line per row, then the verdict."""
        width = max(len(row.name) for row in self.rows) + 2
        lines = [f"R² of {self.observations} recorded observations' actions"]
        lines.append(" " * width + "".join(f"{name[:8]:>9}" for name in [*self.names, "mean"]))
        for row in self.rows:
            numbers = "".join(f"{max(value, LEAST):9.2f}" for value in [*row.r2, row.score])
            lines.append(f"{row.name:<{width}}{f'  refused: {row.refused}' if row.refused else numbers}")
        return "\n".join([*lines, *self.verdict()])

    def verdict(self) -> list[str]:
        """Which conventions fit, and which dimensions do not."""
        best = self.best
        if not len(best.r2):
            return ["the server refused all of them"]
        others = [row.name for row in self.rows if row is not best and row.score > best.score - TIE]
        also = f" (and {', '.join(others)}, which these observations do not tell apart)" if others else ""
        matches = best.score >= MATCH_R2
        lines = [f"{best.name} fits{also}" if matches else f"nothing fits; the nearest is {best.name}{also}"]
        lines += [self._misfit(int(index)) for index in np.flatnonzero(best.r2 < MATCH_R2)]
        return [*lines, self.note] if self.note else lines

    def _misfit(self, index: int) -> str:
        """What is wrong with a dimension."""
        best, name = self.best, self.names[index]
        correlation = best.correlation[index]
        line = f"{name} does not fit (R² {best.r2[index]:.2f}, correlation {correlation:.2f}): "
        if correlation <= -FOLLOWS and index in self.grippers:
            return f"{line}its sign is opposite; exchange --foreign.gripper_open and --foreign.gripper_closed"
        if correlation <= -FOLLOWS:
            return f"{line}its sign is opposite"
        if correlation >= FOLLOWS:
            return f"{line}its scale or offset differs, {best.slope[index]:.2g} recorded per answered unit"
        return f"{line}it does not follow the recordings"


def check_conventions(
    client: Client, chosen: Conventions, changes: Mapping[str, Any], store: TrainingStore, count: int
) -> Check:
    """Sends recorded observations to a served policy under each preset.

    Args:
        client: a connection that has been greeted.
        chosen: the conventions that an evaluation would have.
        changes: settings that are laid on every preset.
        store: the recordings; their images are resized from the size that they have.
        count: observations, spread evenly over all frames.

    Raises:
        UserError: a count below 2, no recordings, another robot, or the server is gone.

    """
    total = len(store.frame_step)
    if count < 2 or not total:
        raise UserError(f"--check is {count}, {store.folder} has {total} frames; show at least 2 of them")
    if client.own:
        require_same_robot(client.card, store.action_spec, client.url)
    frames = np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(np.int64))
    answers = _Answers(client, store, frames)
    rows = (
        {"wmjax": chosen} if client.own else {name: resolved(client, {**changes, "preset": name}) for name in PRESETS}
    )
    found = [answers.row(name, conventions) for name, conventions in rows.items()]
    best = max(found, key=lambda row: row.score)
    if best.r2.size:
        found += [answers.row(*varied) for varied in _variations(best.name, rows[best.name])]
    sizes = {conventions.image_size for conventions in rows.values()}
    small = store.spec.image_size < max(sizes)
    note = f"the recorded images have {store.spec.image_size} pixels a side and were enlarged" if small else ""
    return Check(found, store.action_spec.names, store.action_spec.grippers, len(frames), note)


def _variations(name: str, chosen: Conventions) -> Iterator[tuple[str, Conventions]]:
    for field, value in VARIATIONS:
        if getattr(chosen, field) != value:
            yield f"{name}, {field} {value}", dataclasses.replace(chosen, **{field: value})


class _Answers:
    """A server's answers to some recorded observations; each form of the observations is requested once."""

    def __init__(self, client: Client, store: TrainingStore, frames: np.ndarray) -> None:
        self._client, self._store, self._frames = client, store, frames
        self._known: dict[Conventions, list[np.ndarray]] = {}
        self._number = 0

    def row(self, name: str, chosen: Conventions) -> Row:
        """How well a policy predicts the recorded actions under some conventions."""
        plain = Conventions()
        way = dataclasses.replace(chosen, **{field: getattr(plain, field) for field in READING})
        try:
            if way not in self._known:
                self._known[way] = [self._ask(int(frame), chosen) for frame in self._frames]
            answers = [raw_actions(answer, self._store.action_spec, chosen) for answer in self._known[way]]
        except UserError as error:
            self._client.close()
            self._client = connected(type(self._client), self._client.url, self._client.timeout_s)
            return Row(name, refused=str(error)[:120])
        steps = min(min(map(len, answers)), self._store.spec.frame_stride)
        truth, mask = chunk_labels(self._store, self._frames, steps, 0)
        guess = np.stack([answer[:steps] for answer in answers])
        return fitted(name, guess[mask].astype(np.float64), truth[mask].astype(np.float64))

    def _ask(self, frame: int, chosen: Conventions) -> np.ndarray:
        """The answer to one observation, sent as the first of a new episode."""
        store = self._store
        entry = store.episodes[store.frame_episode[frame]]
        images, state = as_expected(store.frames[[frame]], store.state[store.frame_row[frame]], store.spec, chosen)
        self._number += 1
        episode = EpisodeId("check", 0, "random", self._number)
        self._client.ask(View(images, state, entry["instruction"], episode, 0, True), chosen)
        return self._client.answer()


def fitted(name: str, guess: Float[np.ndarray, "n action"], truth: Float[np.ndarray, "n action"]) -> Row:
    """R², correlation and slope of each dimension; NaN where the truth is constant."""
    error, spread = ((guess - truth) ** 2).mean(0), truth.var(0)
    together = ((guess - guess.mean(0)) * (truth - truth.mean(0))).mean(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        r2 = np.where(spread > 0, 1 - error / spread, np.nan)
        correlation = np.nan_to_num(together / (guess.std(0) * truth.std(0)))
        slope = np.nan_to_num(together / guess.var(0), posinf=0.0, neginf=0.0)
    return Row(name, r2, correlation, slope)
