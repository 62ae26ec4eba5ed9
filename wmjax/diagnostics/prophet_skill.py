"""The skill of the Prophet beside predictors without one, and whether its predictions have collapsed.

Skill is ``1 - |ẑ(t+k) - z(t+k)|² / |z(t) - z(t+k)|²`` with both sums over all samples: 0 is copying, 1 is perfect.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Float32

from wmjax.analysis.ridge import RIDGES, Ridge, effective_rank, held_out, predict_once, spectrum
from wmjax.core.errors import UserError
from wmjax.core.text_table import text_table
from wmjax.diagnostics.samples import LatentWindows

RANK_ALARM, VARIANCE_ALARM = 0.3, 0.1
"""Ratios to the truth below which predictions count as collapsed."""
CHANGE_RANK_ALARM = 0.1
"""The same for the rank of changes, which is lower: the best prediction omits what cannot be predicted."""
ROUNDING = 1e-6
"""Variance ratio below which predictions are one constant and rounding errors, which have full rank."""
CHOOSE_EVERY = 4
"""The ridge's strength is chosen on every fourth token position, to save time."""

Latents = Float32[np.ndarray, "n future tokens dim"]


@dataclasses.dataclass(frozen=True)
class WorldSection:
    """Predicted latents against the true ones, per future frame.

    Attributes:
        skill: of the Prophet and of the references, against copying z(t). ``mean delta`` adds the training
            split's mean change, ``ridge`` is linear in the history of each token and of the frame's mean.
        prophet_over_ridge: skill with the ridge regression in place of the copy: what the Prophet adds to it.
        variance: variance of the predictions over that of the truth, and the same of the changes since z(t): a
            Prophet that predicts changes has collapsed if they do not depend on the input.
        rank: effective rank of predictions and truth, and of predicted and true changes.
        channels: of a latent; a true rank far below it says that the encoder itself holds little to predict.
        ridge_strength: chosen on held-out training episodes.
        samples: future frames that exist, per horizon.
        alarms: what has collapsed, in words; empty if nothing has.
        note: what to know about this variant's Prophet.

    """

    skill: dict[str, Float[np.ndarray, " future"]]
    prophet_over_ridge: Float[np.ndarray, " future"]
    variance: dict[str, Float[np.ndarray, " future"]]
    rank: dict[str, Float[np.ndarray, " future"]]
    channels: int
    ridge_strength: Float[np.ndarray, " future"]
    samples: tuple[int, ...]
    alarms: tuple[str, ...]
    note: str

    def table(self) -> str:
        """A plain-text report."""
        head = [f"t+{k + 1}" for k in range(len(self.samples))]
        skills = [(name, *row) for name, row in self.skill.items()]
        skills += [("Prophet against ridge", *self.prophet_over_ridge), ("samples", *self.samples)]
        spreads = [(f"variance ratio, {name}", *row) for name, row in self.variance.items()]
        spreads += [(f"effective rank of {self.channels}, {name}", *row) for name, row in self.rank.items()]
        ending = [f"COLLAPSE: {alarm}" for alarm in self.alarms] or ["no collapse"]
        parts = [text_table(("skill (0: copy)", *head), skills), "", text_table(("spread", *head), spreads), *ending]
        return "\n".join([*parts, self.note] if self.note else parts)


def world_section(prediction: Latents, test: LatentWindows, train: LatentWindows, note: str = "") -> WorldSection:
    """Scores predictions.

    Args:
        prediction: ẑ of the samples of ``test``.
        test: what happened.
        train: of the training split, from which the references are fitted.
        note: printed below.

    """
    mean_delta = test.now[:, None] + mean_change(train)
    ridge, strength = ridge_futures(train, test.history)
    copy = np.broadcast_to(test.now[:, None], test.future.shape)
    guesses = {"Prophet": prediction, "mean delta": mean_delta, "ridge": ridge}
    rows = [test.mask[:, k] for k in range(test.mask.shape[1])]
    change, true_change = prediction - copy, test.future - copy
    spread = [spread_of(prediction[r, k], test.future[r, k]) for k, r in enumerate(rows)]
    spread_change = [spread_of(change[r, k], true_change[r, k]) for k, r in enumerate(rows)]
    return WorldSection(
        skill={name: skill(guess, test.future, copy, test.mask) for name, guess in guesses.items()},
        prophet_over_ridge=skill(prediction, test.future, ridge, test.mask),
        variance={
            "latents": np.array([s.variance_ratio for s in spread]),
            "changes": np.array([s.variance_ratio for s in spread_change]),
        },
        rank={
            "predicted": np.array([s.rank for s in spread]),
            "true": np.array([s.true_rank for s in spread]),
            "predicted changes": np.array([s.rank for s in spread_change]),
            "true changes": np.array([s.true_rank for s in spread_change]),
        },
        channels=test.future.shape[-1],
        ridge_strength=strength,
        samples=tuple(int(r.sum()) for r in rows),
        alarms=(*alarms(spread, "latents"), *alarms(spread_change, "changes", CHANGE_RANK_ALARM)),
        note=note,
    )


def skill(
    guess: Latents, truth: Latents, reference: Latents, mask: Bool[np.ndarray, "n future"]
) -> Float[np.ndarray, " future"]:
    """``1 - |guess - truth|² / |reference - truth|²`` per future frame, over those that exist."""
    error, base = (
        (np.square(values - truth, dtype=np.float64).sum((2, 3)) * mask).sum(0) for values in (guess, reference)
    )
    return np.where(base > 0.0, 1.0 - error / np.maximum(base, 1e-12), np.nan)


def mean_change(train: LatentWindows) -> Float32[np.ndarray, "future tokens dim"]:
    """Mean of z(t+k) - z(t) over the frames that exist, per token and channel."""
    weight = train.mask[..., None, None]
    total = ((train.future - train.now[:, None]) * weight).sum(0, dtype=np.float64)
    return (total / np.maximum(weight.sum(0), 1)).astype(np.float32)


def ridge_futures(
    train: LatentWindows, history: Float32[np.ndarray, "n history tokens dim"]
) -> tuple[Latents, Float[np.ndarray, " future"]]:
    """Linear predictions of every token's changes from z(t-2..t), and the chosen strengths.

    Every token position has its own regression on its own history and that of the mean over positions, flattened;
    samples with a complete future are fitted. The mean matters: it tells all positions where the arm is.

    Raises:
        UserError: all of them are of one episode.

    """
    train = train.complete()
    if len(np.unique(train.episode)) < 2:
        raise UserError("the training split has fewer than 2 episodes with a complete future; record more episodes")
    strengths = choose_strengths(train)
    out = np.empty((len(history), *train.future.shape[1:]), np.float32)
    for token in range(history.shape[2]):
        x, y, new = ridge_features(train.history, token), _changes(train, token), ridge_features(history, token)
        for strength in np.unique(strengths):
            chosen = strengths == strength
            guess = predict_once(x, y[:, chosen].reshape(len(y), -1), strength, new)
            out[:, chosen, token] = guess.reshape(len(new), chosen.sum(), -1)
    return out + history[:, -1:], strengths


def choose_strengths(train: LatentWindows) -> Float[np.ndarray, " future"]:
    """The strength with the least error on held-out training episodes, per future frame."""
    validation = held_out(train.episode)
    error = np.zeros((len(RIDGES), train.future.shape[1]))
    for token in range(0, train.history.shape[2], CHOOSE_EVERY):
        x, y = ridge_features(train.history, token), _changes(train, token)
        guesses = Ridge(x[~validation]).path(y[~validation].reshape((~validation).sum(), -1), RIDGES, x[validation])
        for i, guess in enumerate(guesses):
            error[i] += np.square(guess.reshape(y[validation].shape) - y[validation]).sum((0, 2))
    return np.array(RIDGES)[error.argmin(0)]


def ridge_features(
    history: Float32[np.ndarray, "n history tokens dim"], token: int
) -> Float32[np.ndarray, "n features"]:
    """The token's history and the frame means', flattened."""
    return np.concatenate([history[:, :, token], history.mean(2)], axis=-1).reshape(len(history), -1)


def _changes(train: LatentWindows, token: int) -> Float32[np.ndarray, "n future dim"]:
    """z(t+k) - z(t) of one token position."""
    return train.future[:, :, token] - train.now[:, None, token]


@dataclasses.dataclass(frozen=True)
class Spread:
    """The variation over samples of the predictions of one future frame, beside that of the truth."""

    variance_ratio: float
    rank: float
    true_rank: float


def spread_of(predicted: Float32[np.ndarray, "n tokens dim"], truth: Float32[np.ndarray, "n tokens dim"]) -> Spread:
    """Variance and effective rank over samples; what differs only between token positions counts for nothing."""
    if len(truth) < 2:
        return Spread(*[float("nan")] * 3)
    values, actual = (_eigenvalues(x) for x in (predicted, truth))
    ratio = values.sum() / actual.sum() if actual.sum() > 0.0 else float("nan")
    rank = 0.0 if ratio < ROUNDING else effective_rank(values)
    return Spread(float(ratio), rank, effective_rank(actual))


def _eigenvalues(x: Float32[np.ndarray, "n tokens dim"]) -> Float[np.ndarray, " dim"]:
    """Of the channels' covariance over samples, all token positions pooled after centring each."""
    return spectrum((x - x.mean(0, dtype=np.float64)).reshape(-1, x.shape[-1]))


def alarms(
    spread: list[Spread], what: str, rank: float = RANK_ALARM, variance: float = VARIANCE_ALARM
) -> tuple[str, ...]:
    """One line for each future frame whose prediction has collapsed. NaN (undefined) raises no alarm."""
    lines = []
    for k, s in enumerate(spread, 1):
        if s.variance_ratio < variance:
            lines.append(f"the variance of the predicted {what} at t+{k} is {s.variance_ratio:.3f} of the true one")
        if s.rank < rank * s.true_rank:
            lines.append(f"the effective rank of the predicted {what} at t+{k} is {s.rank:.1f} of {s.true_rank:.1f}")
    return tuple(lines)
