"""Effective rank: the number of directions that features use, low when they have collapsed. Needs numpy only."""

import numpy as np
from jaxtyping import Float


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
