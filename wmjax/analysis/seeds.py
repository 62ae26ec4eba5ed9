"""Two systems over several training seeds: the unit of replication is the training run, not the episode."""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from scipy.stats import t as student

from wmjax.analysis.comparison import BOOTSTRAP_DRAWS, Comparison, compare
from wmjax.core.errors import UserError
from wmjax.rollout.results import differences, read_header

MAX_EXACT = 16
"""Largest number of seeds for which all sign flips are enumerated."""
MARGIN = 0.05
"""A difference in success rates that is too small to matter."""
VARIES = ("checkpoint.hash", "experiment.seed", "recipe_hash")
"""Header fields that differ between the training seeds of one system."""


@dataclasses.dataclass(frozen=True)
class SeedComparison:
    """System B against system A, paired by training seed and by episode.

    Attributes:
        seeds: training seed of each pair.
        pairs: comparison of each pair of runs.
        difference: mean over seeds of the difference in success rate, B minus A.
        interval: Student's 95 % interval of that mean; NaN for a single seed.
        p_value: exact sign-flip permutation test of the seeds' differences, two-sided: at best 2 / 2^seeds.
        hierarchical: 95 % of the mean difference, bootstrapped over seeds and, within them, over episodes by task.
        equivalence: p-value of the two one-sided t tests that the mean difference is outside ``MARGIN`` (Schuirmann
            1987): a small one says that it is too small to matter. NaN for a single seed.

    """

    seeds: tuple[int, ...]
    pairs: tuple[Comparison, ...]
    difference: float
    interval: tuple[float, float]
    p_value: float
    hierarchical: tuple[float, float]
    equivalence: float

    def table(self) -> str:
        """A plain-text report."""
        changes = {k: v for k, v in self.pairs[0].changes.items() if k not in VARIES}  # each pair's are the same
        lines = [f"{name}: {a!r} in A, {b!r} in B" for name, (a, b) in changes.items()]
        lines += ["", "seed  pairs       A       B   B - A"]
        for seed, pair in zip(self.seeds, self.pairs, strict=True):
            total = pair.rows[-1]
            a, b = (100 * (total.both + only) / total.pairs for only in (total.only_a, total.only_b))
            lines.append(f"{seed:>4}  {total.pairs:>5}  {a:5.1f} %  {b:5.1f} %  {100 * pair.difference:+6.1f}")
        low, high = (100 * bound for bound in self.interval)
        lines += [
            "",
            f"B - A over {len(self.seeds)} training seeds: {100 * self.difference:+.1f} points "
            f"(95 % {low:+.1f} to {high:+.1f}), exact sign-flip p = {self.p_value:.3g}; "
            f"{sum(pair.unpaired for pair in self.pairs)} unpaired episodes left out",
            f"over seeds and episodes, bootstrapped: 95 % {100 * self.hierarchical[0]:+.1f} to "
            f"{100 * self.hierarchical[1]:+.1f} points",
            f"a difference of {100 * MARGIN:g} points or more is refuted with p = {self.equivalence:.3g}",
        ]
        if (smallest := 2 / 2 ** len(self.seeds)) > 0.05:
            lines.append(f"{len(self.seeds)} seeds can reach p = {smallest:.3g} at best; 0.05 needs six or more")
        return "\n".join(lines)


def compare_seeds(a: Sequence[Path], b: Sequence[Path]) -> SeedComparison:
    """Compares two systems' evaluations, one per training seed each.

    Args:
        a: results folders of the baseline.
        b: results folders of the other system, of the same training seeds in any order.

    Raises:
        UserError: seeds that are missing, doubled or not the same on both sides, evaluations of one side that differ
            in more than the training seed, or see :func:`wmjax.analysis.comparison.compare`.

    """
    left, right = _by_seed(a), _by_seed(b)
    if left.keys() != right.keys():
        raise UserError(
            f"A has the training seeds {sorted(left)}, B {sorted(right)}; give the same seeds on both sides"
        )
    seeds = tuple(sorted(left))
    pairs = tuple(compare(left[seed], right[seed]) for seed in seeds)
    differences = np.array([pair.difference for pair in pairs])
    return SeedComparison(
        seeds=seeds,
        pairs=pairs,
        difference=float(differences.mean()),
        interval=student_interval(differences),
        p_value=sign_flip(differences),
        hierarchical=hierarchical_bootstrap(pairs),
        equivalence=two_one_sided_tests(differences, MARGIN),
    )


def _by_seed(folders: Sequence[Path]) -> dict[int, Path]:
    """Evaluations by the seed their policy was trained with, alike in everything else."""
    found: dict[int, Path] = {}
    first = read_header(folders[0])
    for folder in folders:
        header = read_header(folder)
        for name, (one, other) in differences(first, header).items():
            if name not in VARIES:
                raise UserError(
                    f"{name} is {one!r} in {folders[0]}, {other!r} in {folder}; the evaluations of one side must "
                    "differ in the training seed only"
                )
        seed = (header.get("experiment") or {}).get("seed")
        if seed is None:
            raise UserError(f"{folder}: not an evaluation of a trained policy (its header has no training seed)")
        if seed in found:
            raise UserError(f"{folder} and {found[seed]} both have training seed {seed}; give one evaluation per seed")
        found[seed] = folder
    return found


def student_interval(values: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """Student's 95 % interval of the mean; NaN for fewer than two values."""
    if len(values) < 2:
        return math.nan, math.nan
    half = float(student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
    return float(values.mean()) - half, float(values.mean()) + half


def sign_flip(values: Float[np.ndarray, " n"]) -> float:
    """Exact two-sided permutation test that the values are symmetric about zero (Fisher 1935).

    Raises:
        UserError: more values than can be enumerated.

    """
    if len(values) > MAX_EXACT:
        raise UserError(f"{len(values)} training seeds are more than the {MAX_EXACT} that are enumerated; give fewer")
    signs = np.array(list(itertools.product((1, -1), repeat=len(values))))
    sums = np.abs(signs @ values)
    return float((sums >= abs(values.sum()) - 1e-12).mean())


def hierarchical_bootstrap(pairs: Sequence[Comparison], seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the mean difference: seeds are redrawn, and in each the episodes of every task.

    Args:
        pairs: comparison of each training seed's runs.
        seed: of the redrawing.

    """
    random = np.random.default_rng(seed)
    total = np.zeros(BOOTSTRAP_DRAWS)
    for _ in pairs:
        drawn = random.integers(0, len(pairs), BOOTSTRAP_DRAWS)
        for index, pair in enumerate(pairs):
            chosen = np.flatnonzero(drawn == index)
            for row in pair.rows[:-1]:
                shares = np.array([row.only_b, row.only_a, row.both + row.neither]) / row.pairs
                counts = random.multinomial(row.pairs, shares, len(chosen))
                total[chosen] += (counts[:, 0] - counts[:, 1]) / pair.rows[-1].pairs
    low, high = np.quantile(total / len(pairs), (0.025, 0.975))
    return float(low), float(high)


def two_one_sided_tests(values: Float[np.ndarray, " n"], margin: float) -> float:
    """P-value that the mean is ``margin`` or more away from zero (two t tests, Schuirmann 1987); NaN for one value."""
    if len(values) < 2:
        return math.nan
    error, mean = float(values.std(ddof=1)) / math.sqrt(len(values)), float(values.mean())
    if error == 0.0:
        return float(abs(mean) >= margin)
    return float(student.sf((margin - abs(mean)) / error, len(values) - 1))
