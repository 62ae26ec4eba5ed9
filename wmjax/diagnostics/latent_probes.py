"""Pose probes: how well ẑ(t+k) determines the future position and rotation of the end effector.

The probes are ridge regressions from one frame's latents to the end effector's position (m) or rotation (two columns
of its matrix), fitted on the training split. *The probe of true latents* is fitted from z(s) to the pose at s. It
reads the predicted latent, the present one (its answer is the present pose) and the true future one (the ceiling).
*Own probes* are fitted from the present or the predicted latent of the training split to the future pose itself; they
measure what each contains in any form.
"""

import dataclasses
from typing import Literal

import numpy as np
from jaxtyping import Float, Float32

from wmjax.analysis.ridge import RIDGES, Ridge, held_out, predict_once, r2
from wmjax.core.text_table import text_table
from wmjax.diagnostics.samples import LatentWindows

Quantity = Literal["position", "rotation"]


@dataclasses.dataclass(frozen=True)
class ProbeSection:
    """R² of the end effector's future position or rotation, pooled over its values, per future frame.

    Attributes:
        quantity: which of the two.
        r2: per input and probe; ``true position at t`` (or rotation) is no probe: it repeats the present one.
        samples: future frames that exist, per horizon.

    """

    quantity: Quantity
    r2: dict[str, Float[np.ndarray, " future"]]
    samples: tuple[int, ...]

    def table(self) -> str:
        """A plain-text report."""
        head = [f"t+{k + 1}" for k in range(len(self.samples))]
        rows = [(name, *row) for name, row in self.r2.items()]
        return text_table((f"R2 of the future {self.quantity}", *head), [*rows, ("samples", *self.samples)])


def probe_section(
    prediction: Float32[np.ndarray, "n future tokens dim"],
    test: LatentWindows,
    train: LatentWindows,
    train_prediction: Float32[np.ndarray, "m future tokens dim"] | None = None,
    quantity: Quantity = "position",
) -> ProbeSection:
    """Fits on ``train``, whose futures are complete, and reads the latents of ``test``.

    Args:
        prediction: ẑ of ``test``.
        test: the scored samples.
        train: the samples that probes are fitted on.
        train_prediction: ẑ of ``train``; None leaves out the predictions' own probes.
        quantity: what is read.

    """
    known, truth = getattr(train, quantity), getattr(test, quantity)
    horizon, now, later = range(test.mask.shape[1]), known[:, 0], known[:, 1:]
    inputs = np.stack([test.now, *np.moveaxis(prediction, 1, 0), *np.moveaxis(test.future, 1, 0)])
    present, *rest = fit_and_read(train.now, now, train.episode, inputs)
    own = fit_and_read(train.now, later.reshape(len(later), -1), train.episode, test.now[None])[0]
    guesses = {
        "probe of true latents: ẑ(t+k)": rest[: len(horizon)],
        "probe of true latents: z(t)": [present for _ in horizon],
        "probe of true latents: z(t+k)": rest[len(horizon) :],
        "own probe: z(t)": list(np.moveaxis(own.reshape(len(own), len(horizon), -1), 1, 0)),
    }
    if train_prediction is not None:
        pairs = [(train_prediction[:, k], later[:, k], prediction[None, :, k]) for k in horizon]
        guesses["own probe: ẑ(t+k)"] = [fit_and_read(x, y, train.episode, new)[0] for x, y, new in pairs]
    guesses[f"true {quantity} at t"] = [truth[:, 0] for _ in horizon]

    def scores(guess: list[np.ndarray]) -> np.ndarray:
        return np.array([_score(g, truth[:, 1 + k], test.mask[:, k]) for k, g in enumerate(guess)])

    return ProbeSection(
        quantity=quantity,
        r2={name: scores(guess) for name, guess in guesses.items()},
        samples=tuple(int(test.mask[:, k].sum()) for k in horizon),
    )


def fit_and_read(
    latents: Float32[np.ndarray, "n tokens dim"],
    targets: Float[np.ndarray, "n values"],
    episode: np.ndarray,
    new: Float32[np.ndarray, "parts m tokens dim"],
) -> Float[np.ndarray, "parts m values"]:
    """Predicts from ``new`` by a ridge regression whose strength is chosen on held-out training episodes."""
    x, y, validation = latents.reshape(len(latents), -1), targets.astype(np.float64), held_out(episode)
    tried = [
        np.square(guess - y[validation]).sum()
        for guess in Ridge(x[~validation]).path(y[~validation], RIDGES, x[validation])
    ]
    guess = predict_once(x, y, RIDGES[int(np.argmin(tried))], new.reshape(-1, x.shape[1]))
    return guess.reshape(*new.shape[:2], -1)


def _score(guess: Float[np.ndarray, "n values"], truth: Float[np.ndarray, "n values"], exists: np.ndarray) -> float:
    """R² of one future frame against the mean of the samples in which it exists."""
    truth = truth[exists]
    return r2(guess[exists], truth, truth.mean(0)) if exists.sum() > 1 else float("nan")
