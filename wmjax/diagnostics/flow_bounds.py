"""Flow head: its loss beside that of predictors that do not see the observation.

The head is trained on ``|u(x_t, t, observation) - (a - n)|²`` with ``x_t = (1 - t) n + t a``, noise ``n ~ N(0, I)``,
``t ~ Beta`` and normalised chunks ``a``, averaged over all values of a chunk. References:

*Zero velocity*: ``E|a - n|² = E|a|² + 1`` per value, exactly.

*Best unconditional*: among all functions of ``(x_t, t)`` the conditional mean ``u* = E[a - n | x_t = x]`` has the least
loss. Let the chunks be distributed as a mixture of points ``a_i`` (the empirical distribution). Given ``a_i`` the
noise is ``n = (x - t a_i) / (1 - t)``, and ``x | a_i ~ N(t a_i, (1 - t)² I)``, so

    u*(x, t) = Σ_i w_i (a_i - (x - t a_i) / (1 - t)) = (Σ_i w_i a_i - x) / (1 - t),   w_i ∝ N(x; t a_i, (1 - t)² I).

Hence the loss at a draw is ``|E[a | x] - a|² / (1 - t)²``. Over the very chunks of the mixture this is the least value
that any unconditional predictor can have on them, and in expectation *below* the least value on new chunks: at late
t it looks up which training chunk it sees. On new chunks the same formula diverges (it is never certain of the right
chunk, and ``1 / (1 - t)²`` is not integrable), so there the distribution is smoothed:

    a ~ mixture of N(m + √(1 - h²) (a_i - m), h² Σ),   m and Σ the mean and covariance of the chunks,

which has mean m and covariance Σ for every h: h = 0 is the empirical distribution, h = 1 a Gaussian. With
``c_i = m + √(1 - h²) (a_i - m)``, in the eigenbasis of Σ with eigenvalues λ and after subtracting m and t m,

    v = (1 - t)² + t² h² λ,   w_i ∝ Π_d N(x_d; t c_id, v_d),   E[a | x, i] = c_i + (t h² λ / v) (x - t c_i).

h is chosen on held-out training episodes. Every predictor's loss on new chunks is at least the optimum, so this one
is an *upper* bound of it. The lookup among the scored chunks themselves bounds their loss from below, the one among the
more numerous training chunks in expectation and closer; a head must beat both to be called better. All of these are
means over random draws, as the head's loss is: differences of a few hundredths say nothing.
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from wmjax.analysis.ridge import held_out
from wmjax.core.text_table import text_table
from wmjax.diagnostics.section import Skipped

DRAWS = 2048
SMOOTHINGS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
BEATS_ALL = "better than any head that ignores the observation"
BEATS_KNOWN = "better than the best predictor we know that ignores the observation; the optimum is between the bounds"
FLOOR = 1e-6
"""Least eigenvalue of a covariance: directions in which no chunk varies."""


@dataclasses.dataclass(frozen=True)
class FlowSection:
    """Losses per value of complete chunks.

    Attributes:
        loss: the head's, on the split; and the references'.
        smoothing: the chosen h.
        chunks: complete chunks that the head was scored on.
        verdict: where the head stands between the references.

    """

    loss: dict[str, float]
    smoothing: float
    chunks: int
    verdict: str

    def table(self) -> str:
        """A plain-text report."""
        ending = f"{self.chunks} complete chunks, smoothing h = {self.smoothing}; {self.verdict}"
        return text_table(("flow loss", "per value"), list(self.loss.items())) + "\n" + ending


def flow_section(
    loss: float,
    test: Float[np.ndarray, "n values"],
    train: Float[np.ndarray, "m values"],
    episode: Int[np.ndarray, " m"],
    beta: tuple[float, ...],
) -> FlowSection | Skipped:
    """Puts a head's loss beside the references; skipped with one training episode, from which none can be held out.

    Args:
        loss: of the head on complete chunks of the split.
        test: those chunks, normalised and flattened.
        train: complete chunks of the training split.
        episode: their episodes.
        beta: the distribution of the flow time.

    """
    if len(np.unique(episode)) < 2:
        return Skipped("complete chunks of two training episodes are needed, to choose the smoothing on one of them")
    rng = np.random.default_rng(0)
    smoothing = choose_smoothing(train, episode, beta, rng)
    looked_up = {name: unconditional_loss(c, 0.0, c, beta, rng) for name, c in (("training", train), ("these", test))}
    upper = unconditional_loss(train, smoothing, test, beta, rng)
    losses = {
        "this head": loss,
        "best unconditional, at most (smoothed training chunks)": upper,
        **{f"best unconditional, at least ({name} chunks, looked up)": value for name, value in looked_up.items()},
        "zero velocity": zero_velocity_loss(test),
    }
    return FlowSection(
        losses, smoothing, len(test), verdict(loss, min(looked_up.values()), upper, losses["zero velocity"])
    )


def verdict(loss: float, lower: float, upper: float, zero: float) -> str:
    """A comparison of a loss with its bounds, in words."""
    if loss >= zero:
        return "WORSE THAN A ZERO VELOCITY"
    if loss > upper:
        return "WORSE THAN IGNORING THE OBSERVATION"
    return BEATS_ALL if loss < lower else BEATS_KNOWN


def zero_velocity_loss(chunks: Float[np.ndarray, "n values"]) -> float:
    """``E|a - n|²`` per value."""
    return float(np.square(chunks, dtype=np.float64).mean() + 1.0)


def choose_smoothing(
    train: np.ndarray, episode: np.ndarray, beta: tuple[float, ...], rng: np.random.Generator
) -> float:
    """The h with the least loss on held-out training episodes."""
    validation = held_out(episode)
    seed = int(rng.integers(1 << 31))
    losses = [
        unconditional_loss(train[~validation], h, train[validation], beta, np.random.default_rng(seed))
        for h in SMOOTHINGS
    ]
    return SMOOTHINGS[int(np.argmin(losses))]


def unconditional_loss(
    centres: Float[np.ndarray, "m values"],
    smoothing: float,
    chunks: Float[np.ndarray, "n values"],
    beta: tuple[float, ...],
    rng: np.random.Generator,
    draws: int = DRAWS,
) -> float:
    """Monte Carlo loss per value of the conditional mean under smoothed ``centres``, for draws of ``chunks``."""
    mean = centres.mean(0, dtype=np.float64)
    offsets = centres - mean
    eigenvalues, basis = np.linalg.eigh(offsets.T @ offsets / len(centres))
    action = (chunks[rng.integers(0, len(chunks), draws)] - mean) @ basis
    time = beta_quantiles((np.arange(draws) + rng.uniform(size=draws)) / draws, beta)[:, None]
    noisy = (1 - time) * rng.normal(size=action.shape) + time * action
    shrunk = np.sqrt(1 - smoothing**2) * offsets @ basis
    prior = smoothing**2 * np.maximum(eigenvalues, FLOOR)
    guess = posterior_mean(noisy, time, shrunk, prior)
    return float((np.square(guess - action) / (1 - time) ** 2).mean())


def posterior_mean(
    noisy: Float[np.ndarray, "draws values"],
    time: Float[np.ndarray, "draws 1"],
    centres: Float[np.ndarray, "m values"],
    prior: Float[np.ndarray, " values"],
) -> Float[np.ndarray, "draws values"]:
    """``E[a | x_t]`` for a mixture of ``N(c_i, diag(prior))`` seen through ``x_t = (1 - t) n + t a``."""
    variance = (1 - time) ** 2 + time**2 * prior
    # -|x - t c|² / 2v without the part that is the same for all centres.
    logits = (time * noisy / variance) @ centres.T - 0.5 * (time**2 / variance) @ np.square(centres).T
    weights = np.exp(logits - logits.max(1, keepdims=True))
    centre = (weights / weights.sum(1, keepdims=True)) @ centres
    return centre + time * prior / variance * (noisy - time * centre)


def beta_quantiles(uniform: Float[np.ndarray, " n"], beta: tuple[float, ...]) -> Float[np.ndarray, " n"]:
    """The flow times of uniform numbers, as :func:`wmjax.models.heads.flow.sample_time` draws them."""
    return 1.0 - (1.0 - uniform ** (1.0 / beta[0])) ** (1.0 / beta[1])
