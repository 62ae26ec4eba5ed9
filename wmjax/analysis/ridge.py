"""Linear measures of features for probes and diagnostics: ridge regression, and the effective rank.

The effective rank is the number of directions that features use, low when they have collapsed. Needs numpy only.
"""

from collections.abc import Sequence

import numpy as np
import scipy.linalg
from jaxtyping import Bool, Float, Int

RIDGES = tuple(10.0**k for k in range(-1, 7))
"""Strengths that are tried, for standardised features and squared errors summed over rows."""


STILL = 0.01
"""A feature that varies less than this share of the features' RMS deviation is not blown up to unit variance."""


def _scale(x: Float[np.ndarray, "rows features"]) -> Float[np.ndarray, " features"]:
    """The divisor of features: their standard deviation, with a floor.

    A pixel that is constant in the rows of the fit and changes once later would otherwise decide the prediction.
    """
    std = x.std(0)
    return np.maximum(std, max(STILL * float(np.sqrt(np.mean(std**2))), 1e-6)).astype(std.dtype)


class Ridge:
    """Ridge regression on standardised features for any target and strength, from one eigendecomposition."""

    def __init__(self, x: Float[np.ndarray, "rows features"]) -> None:
        self.mean, self.std = x.mean(0), _scale(x)
        self.x = (x - self.mean) / self.std
        self.dual = len(self.x) < self.x.shape[1]
        gram = self.x @ self.x.T if self.dual else self.x.T @ self.x
        self.values, self.vectors = np.linalg.eigh(gram.astype(np.float64))

    def predict(
        self, y: Float[np.ndarray, "rows targets"], strength: float, new: Float[np.ndarray, "new features"]
    ) -> Float[np.ndarray, "new targets"]:
        """Predictions for the features ``new`` after fitting ``y``; the intercept is not shrunk."""
        return self.path(y, (strength,), new)[0]

    def path(
        self,
        y: Float[np.ndarray, "rows targets"],
        strengths: Sequence[float],
        new: Float[np.ndarray, "new features"],
    ) -> list[Float[np.ndarray, "new targets"]]:
        """Predictions of :meth:`predict` for each strength."""
        centre = y.mean(0)
        turned = self.vectors.T @ (y - centre if self.dual else self.x.T @ (y - centre))
        scaled = (new - self.mean) / self.std
        left = (scaled @ self.x.T if self.dual else scaled) @ self.vectors
        values = np.maximum(self.values, 0)[:, None]
        return [left @ (turned / (values + strength)) + centre for strength in strengths]


def predict_once(
    x: Float[np.ndarray, "rows features"],
    y: Float[np.ndarray, "rows targets"],
    strength: float,
    new: Float[np.ndarray, "new features"],
) -> Float[np.ndarray, "new targets"]:
    """The predictions of :class:`Ridge` for one strength, computed several times faster: by Cholesky, in float64."""
    kernel, intercept = fit_linear(x, y, strength)
    return new.astype(np.float64) @ kernel + intercept


def fit_linear(
    x: Float[np.ndarray, "rows features"], y: Float[np.ndarray, "rows targets"], strength: float
) -> tuple[Float[np.ndarray, "features targets"], Float[np.ndarray, " targets"]]:
    """The map of :class:`Ridge` for one strength: ``new @ kernel + intercept``, in float64 and by Cholesky."""
    mean, std, centre = x.mean(0), _scale(x), y.mean(0)
    x = (x - mean).astype(np.float64) / std
    dual = len(x) < x.shape[1]
    gram = x @ x.T if dual else x.T @ x
    gram[np.diag_indices_from(gram)] += strength
    solved = scipy.linalg.solve(gram, y - centre if dual else x.T @ (y - centre), assume_a="pos", overwrite_a=True)
    kernel = (x.T @ solved if dual else solved) / std[:, None]
    return kernel, centre - mean @ kernel


def held_out(groups: Int[np.ndarray, " rows"]) -> Bool[np.ndarray, " rows"]:
    """The rows on which a strength is chosen: every fourth group (episode), so that no group is on both sides."""
    return np.isin(groups, np.unique(groups)[::4])


def ridge_r2(
    x: Float[np.ndarray, "rows features"],
    targets: dict[str, np.ndarray],
    train: Bool[np.ndarray, " rows"],
    groups: Int[np.ndarray, " rows"],
) -> dict[str, float]:
    """R^2 on the rows outside ``train`` of standardised ridge regressions, one per target.

    The strength is chosen inside ``train`` on every fourth episode. R^2 is pooled over a target's dimensions.
    """
    validation = np.zeros_like(train)
    validation[train] = held_out(groups[train])
    inner = train & ~validation
    choose, final = Ridge(x[inner]), Ridge(x[train])
    scores = {}
    for name, y in targets.items():
        tried = [r2(guess, y[validation], y[inner].mean(0)) for guess in choose.path(y[inner], RIDGES, x[validation])]
        guess = final.predict(y[train], RIDGES[int(np.argmax(tried))], x[~train])
        scores[name] = r2(guess, y[~train], y[train].mean(0))
    return scores


def r2(guess: np.ndarray, truth: np.ndarray, constant: np.ndarray) -> float:
    """R^2 pooled over all dimensions; 0 is the score of predicting ``constant``."""
    return float(1 - ((guess - truth) ** 2).sum() / ((truth - constant) ** 2).sum())


def spectrum(centred: Float[np.ndarray, "rows dim"]) -> Float[np.ndarray, " dim"]:
    """Eigenvalues of the covariance of rows whose mean is zero."""
    return np.maximum(np.linalg.eigvalsh(centred.T @ centred / len(centred)), 0.0)


def effective_rank(eigenvalues: Float[np.ndarray, " dim"]) -> float:
    """Exp of the entropy of the normalised eigenvalues (Roy and Vetterli 2007); 0 if nothing varies."""
    total = eigenvalues.sum()
    if total < 1e-12:
        return 0.0
    share = eigenvalues / total
    return float(np.exp(-(share * np.log(share + 1e-12)).sum()))


def token_rank(tokens: Float[np.ndarray, "*batch dim"]) -> float:
    """Effective rank of tokens around their common mean, in float64."""
    rows = tokens.reshape(-1, tokens.shape[-1])
    return effective_rank(spectrum(rows - rows.mean(0, dtype=np.float64)))
