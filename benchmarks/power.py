"""How large a difference between two variants an experiment with several training seeds would find.

python -m benchmarks.power [--seeds 4 8 12 16] [--sd 7 10] [--looks 8 12 16]

A training seed gives one difference of success rates, in points, that is normal about the true difference. Without
looks a two-sided t test over all seeds is made once. With ``--looks`` it is made after so many seeds, and the
experiment ends as soon as a p-value is below the O'Brien-Fleming threshold of that look (O'Brien and Fleming 1979,
Biometrics 35): on the scale of z the threshold falls as one over the square root of the share of the seeds. Its
constant is calibrated by simulated nulls so that all looks together err in 5 %. Printed are the differences that are
found in 80 % of the experiments, and the mean number of seeds that they take.
"""

import argparse
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.stats import norm
from scipy.stats import t as student

ALPHA, POWER, DRAWS = 0.05, 0.8, 40_000


class Outcome(NamedTuple):
    """The share of simulated experiments that find a difference, and the seeds that they take on average."""

    power: float
    seeds: float


def p_values(seeds: Float[np.ndarray, "draws seeds"], looks: Sequence[int]) -> Float[np.ndarray, "draws looks"]:
    """Two-sided p-values of Student's t test of mean zero on the first seeds, for each look."""
    columns = []
    for look in looks:
        part = seeds[:, :look]
        statistic = part.mean(1) / (part.std(1, ddof=1) / np.sqrt(look))
        columns.append(2 * student.sf(np.abs(statistic), look - 1))
    return np.stack(columns, axis=1)


def thresholds(looks: Sequence[int], seed: int = 0) -> Float[np.ndarray, " looks"]:
    """The p-value below which each look ends the experiment, so that all together err in ``ALPHA`` of the nulls."""
    if len(looks) == 1:
        return np.array([ALPHA])
    shares = np.array(looks) / looks[-1]
    null = p_values(np.random.default_rng(seed).normal(size=(5 * DRAWS, looks[-1])), looks)
    # A p-value below 2 Phi(-c / sqrt(share)), written as the c at which it would be.
    constants = np.sort((norm.isf(null / 2) * np.sqrt(shares)).max(1))
    constant = constants[int((1 - ALPHA) * len(constants))]
    return 2 * norm.sf(constant / np.sqrt(shares))


def simulate(difference: float, sd: float, looks: Sequence[int], levels: np.ndarray, seed: int = 1) -> Outcome:
    """Experiments with a true difference and a deviation between seeds, both in points."""
    seeds = np.random.default_rng(seed).normal(difference, sd, (DRAWS, looks[-1]))
    found = p_values(seeds, looks) < levels
    first = np.where(found.any(1), np.array(looks)[found.argmax(1)], looks[-1])
    return Outcome(float(found.any(1).mean()), float(first.mean()))


def detectable(sd: float, looks: Sequence[int]) -> tuple[float, float]:
    """The difference (points) that is found with ``POWER``, and the mean number of seeds that it takes."""
    levels, low, high = thresholds(looks), 0.0, 20 * sd
    while high - low > 0.05:
        middle = (low + high) / 2
        low, high = (low, middle) if simulate(middle, sd, looks, levels).power >= POWER else (middle, high)
    return high, simulate(high, sd, looks, levels).seeds


def main(argv: list[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[2, 3, 4, 6, 8, 12, 16])
    parser.add_argument("--sd", type=float, nargs="+", default=[7.0, 10.0])
    parser.add_argument("--looks", type=int, nargs="+", default=[8, 12, 16])
    arguments = parser.parse_args(argv)
    print("| seeds | " + " | ".join(f"sd {sd:g}" for sd in arguments.sd) + " |")
    print("|---" * (1 + len(arguments.sd)) + "|")
    for looks in [[count] for count in arguments.seeds] + [arguments.looks]:
        cells = []
        for sd in arguments.sd:
            difference, mean = detectable(sd, looks)
            cells.append(f"{difference:.1f}" + (f" (after {mean:.1f} seeds)" if len(looks) > 1 else ""))
        name = f"at most {looks[-1]}, looks after {', '.join(map(str, looks))}" if len(looks) > 1 else str(looks[0])
        print(f"| {name} | " + " | ".join(cells) + " |")
    print("thresholds of the looks:", ", ".join(f"{level:.4f}" for level in thresholds(arguments.looks)))


if __name__ == "__main__":
    main()
