"""A Prophet whose linear map starts at ridge regression, fitted on the training episodes."""

import logging

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float

from wmjax.analysis.ridge import fit_linear
from wmjax.diagnostics.prophet_skill import choose_strengths, ridge_features
from wmjax.diagnostics.samples import training_windows
from wmjax.models.parameters import from_named, to_named
from wmjax.models.vla import VLAConfig
from wmjax.trainer.config import Inputs

log = logging.getLogger("wmjax.train")

LINEAR = "world/prophet/linear/"
"""The name of the linear map's parameters begins so."""


def start_at_ridge(
    inputs: Inputs, model: VLAConfig, params: nnx.State, frozen: nnx.State
) -> tuple[nnx.State, nnx.State]:
    """Replaces the linear map's parameters by the regression, if the Prophet has one and reads latents.

    Every position has its own regression, with one strength per future frame, as a diagnosis fits it
    (:func:`wmjax.diagnostics.prophet_skill.ridge_futures`); of its matrix the best approximation of rank
    ``model.prophet.linear_rank`` on the training frames is kept.

    Raises:
        UserError: the training split has fewer than two episodes with a complete future.

    """
    named = to_named(params)
    if model.memory.input != "latents" or not any(name.startswith(LINEAR) for name in named):
        return params, frozen
    fitted = {f"{LINEAR}{name}/value": value for name, value in ridge_parameters(inputs, model).items()}
    placed = {name: jax.device_put(value, named[name].sharding) for name, value in fitted.items()}
    return from_named(params, named | placed), frozen


def ridge_parameters(inputs: Inputs, model: VLAConfig) -> dict[str, np.ndarray]:
    """The parameters of :class:`wmjax.models.world.linear_skip.LinearSkip` by name, float32, from training frames."""
    train = training_windows(inputs, model).complete()
    strengths = choose_strengths(train)
    log.info("the Prophet's linear map starts at ridge regression on %d frames", len(train.mask))
    parts: dict[str, list[np.ndarray]] = {"down": [], "up": [], "bias": []}
    for token in range(train.history.shape[2]):
        x = ridge_features(train.history, token)
        y = train.future[:, :, token] - train.now[:, None, token]
        kernel = np.empty((x.shape[1], *y.shape[1:]))
        bias = np.empty(y.shape[1:])
        for strength in np.unique(strengths):
            rows = strengths == strength
            found, constant = fit_linear(x, y[:, rows].reshape(len(y), -1), strength)
            kernel[:, rows], bias[rows] = found.reshape(len(found), rows.sum(), -1), constant.reshape(rows.sum(), -1)
        down, up = reduce_rank(kernel.reshape(len(kernel), -1), x, model.prophet.linear_rank)
        mean = x.mean(0, dtype=np.float64)  # what the smaller rank drops varies, its mean does not
        constant = bias.reshape(-1) + mean @ kernel.reshape(len(kernel), -1) - mean @ down @ up
        for name, value in (("down", down), ("up", up), ("bias", constant)):
            parts[name].append(value.astype(np.float32))
    return {name: np.stack(values) for name, values in parts.items()}


def reduce_rank(
    kernel: Float[np.ndarray, "features targets"], x: Float[np.ndarray, "rows features"], rank: int
) -> tuple[Float[np.ndarray, "features rank"], Float[np.ndarray, "rank targets"]]:
    """The factors of a linear map's best approximation of a rank, for centred inputs ``x`` and squared errors."""
    predicted = (x - x.mean(0)) @ kernel
    vectors = np.linalg.eigh(predicted.T @ predicted)[1][:, ::-1][:, :rank]
    return kernel @ vectors, vectors.T
