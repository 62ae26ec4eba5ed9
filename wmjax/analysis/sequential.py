"""An anytime-valid paired test: it may be evaluated after every episode and stopped as soon as it has decided.

A pair of episodes counts +1 if only B succeeded, -1 if only A did, and 0 otherwise. If A and B are equally good, a pair
that is not 0 is +1 or -1 with equal probability, independent of the earlier pairs. A bet on a difference of ``effect``
is placed before each pair; its capital after n pairs is

    E+(n) = prod over the discordant pairs i up to n of (1 + b_i x_i),   b_i = effect / (share of discordant before i)

which is a nonnegative martingale of mean 1 if there is no difference. E- bets on the other sign. By Ville's inequality
E = (E+ + E-) / 2 exceeds 1 / alpha at any time with probability at most alpha (Wald 1945, Annals of Mathematical
Statistics 16; Ramdas et al. 2023, Statistical Science 38).
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float64, Int

from wmjax.analysis.paired_tests import required_pairs
from wmjax.core.errors import UserError

PRIOR_PAIRS, PRIOR_DISCORDANT = 10, 3
"""What the share of discordant pairs is estimated from before any pair is seen."""
LARGEST_BET = 0.9
LARGEST_LOG = 700.0
"""The largest exponent whose exponential is a float."""

Verdict = Literal["B is better", "A is better", "smaller than the effect", "undecided"]


@dataclasses.dataclass(frozen=True)
class StoppingRule:
    """When a sequential comparison ends.

    Attributes:
        effect: the difference in success rates, in (0, 1), that the comparison is made to find.
        alpha: bound on the probability that a difference is claimed although there is none, at any time of looking.
        beta: the comparison also ends when a difference of ``effect`` has become this improbable. This does not touch
            ``alpha``: what is claimed then is only that the difference is smaller than ``effect``.

    """

    effect: float = 0.15
    alpha: float = 0.05
    beta: float = 0.2

    def __post_init__(self) -> None:
        """Refuses numbers that mean nothing.

        Raises:
            UserError: names the field, its value and what it may be.

        """
        for name, value in dataclasses.asdict(self).items():
            if not 0.0 < value < 1.0:
                raise UserError(f"{name} is {value:g}; it must be above 0 and below 1")


@dataclasses.dataclass(frozen=True)
class Look:
    """The state of a sequential comparison.

    Attributes:
        verdict: what has been decided.
        pairs: paired episodes so far.
        discordant: pairs in which only one system succeeded.
        e_value: the largest capital so far; of several seeds the product of their present ones.
        difference: success rate of B minus that of A.
        fixed: pairs that a test of fixed size would have needed for the effect, with power ``1 - beta`` and the share
            of discordant pairs seen here; None if too few are discordant for such an effect.
        wald: pairs that a sequential test needs on average if the effect is true, by Wald's approximation.

    """

    verdict: Verdict
    pairs: int
    discordant: int
    e_value: float
    difference: float
    fixed: int | None
    wald: float | None

    @property
    def p_value(self) -> float:
        """The anytime-valid p-value."""
        return min(1.0, 1.0 / self.e_value) if self.e_value > 0 else 1.0

    def line(self) -> str:
        """One line for a terminal."""
        sizes = "" if self.fixed is None else f"; a test of fixed size needs {self.fixed}"
        sizes += "" if self.wald is None else f", Wald's mean is {self.wald:.0f}"
        return (
            f"{self.pairs} pairs, {self.discordant} discordant, B - A {100 * self.difference:+.1f} points, "
            f"e-value {self.e_value:.3g}, anytime-valid p = {self.p_value:.3g}: {self.verdict}{sizes}"
        )


def look(pairs: Sequence[Int[np.ndarray, " pairs"]], rule: StoppingRule) -> Look:
    """Evaluates the test on the pairs so far.

    Args:
        pairs: for every training seed the outcomes of its pairs in the order in which they were run: +1 only B
            succeeded, -1 only A, 0 both or neither. The capitals of several seeds are multiplied.
        rule: when to stop.

    Raises:
        UserError: no pairs, or another value than -1, 0 and 1.

    """
    every = np.concatenate([np.asarray(values) for values in pairs]) if pairs else np.zeros(0, int)
    if not len(every) or not np.isin(every, (-1, 0, 1)).all():
        raise UserError(f"{len(every)} pairs; give at least one, each of them -1, 0 or 1")
    paths = [[log_capital(sign * values, rule.effect) for values in pairs] for sign in (1, -1)]
    forward, backward = (sum(float(path[-1]) for path in seeds if len(path)) for seeds in paths)
    # The pairs of several seeds have no common order, so that only their present capitals are known.
    largest = float(np.logaddexp(*(seeds[0] for seeds in paths)).max()) if len(pairs) == 1 else None
    log_e = (float(np.logaddexp(forward, backward)) if largest is None else largest) - math.log(2)
    verdict: Verdict = "undecided"
    if log_e >= -math.log(rule.alpha):
        verdict = "B is better" if forward > backward else "A is better"
    elif max(forward, backward) <= math.log(rule.beta):
        verdict = "smaller than the effect"
    discordant = int((every != 0).sum())
    fixed, wald = sizes(rule, discordant / len(every))
    e_value = math.exp(min(log_e, LARGEST_LOG))
    return Look(verdict, len(every), discordant, e_value, float(every.mean()), fixed, wald)


def log_capital(pairs: Int[np.ndarray, " pairs"], effect: float) -> Float64[np.ndarray, " pairs"]:
    """The logarithm of E+ after each pair, see the module's docstring."""
    discordant = pairs != 0
    before = np.cumsum(discordant) - discordant
    share = (before + PRIOR_DISCORDANT) / (np.arange(len(pairs)) + PRIOR_PAIRS)
    bet = np.minimum(effect / share, LARGEST_BET)
    return np.cumsum(np.log1p(bet * pairs))


def sizes(rule: StoppingRule, share: float) -> tuple[int | None, float | None]:
    """The pairs of a test of fixed size and, by Wald's approximation, of a sequential one, if the effect is true.

    Args:
        rule: effect and errors; the test of fixed size has alpha 0.05.
        share: of pairs that are discordant.

    """
    if share <= rule.effect:
        return None, None
    better = (share + rule.effect) / 2
    fixed = required_pairs(share - better, better, 1 - rule.beta)
    right = better / share
    gain = right * math.log(2 * right) + (1 - right) * math.log(2 * (1 - right))
    accept, reject = math.log(rule.beta / (1 - rule.alpha / 2)), math.log((1 - rule.beta) / (rule.alpha / 2))
    return fixed, ((1 - rule.beta) * reject + rule.beta * accept) / gain / share
