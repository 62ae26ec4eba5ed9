"""Two evaluations of the same episodes: paired difference, its interval, the exact test, and what differed."""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from wmjax.analysis.paired_tests import boschloo, mcnemar_exact, newcombe, paired_counts, required_pairs
from wmjax.core.errors import UserError
from wmjax.rollout.results import EpisodeRecord, differences, read_header, read_records

BOOTSTRAP_DRAWS = 10_000
SAME_START = 1e-9
"""Largest difference between two settled states of one episode, in metres, radians and their rates.

The matrix products of different processors move a state by about 4e-12; another simulator moves it by far more.
"""


@dataclasses.dataclass(frozen=True)
class Row:
    """One task, or all: episodes that both runs finished, and how many each solved, alone or together."""

    name: str
    both: int
    only_a: int
    only_b: int
    neither: int

    @property
    def pairs(self) -> int:
        """Episodes that both runs finished."""
        return self.both + self.only_a + self.only_b + self.neither


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Run B against run A on the same episodes.

    Attributes:
        rows: per task, then all together.
        unpaired: episodes that only one run finished, which are left out.
        difference: success rate of B minus that of A, over the pairs.
        interval: 95 % of the difference, bootstrapped over episodes within tasks. It says nothing about other
            training seeds.
        p_value: exact McNemar test, two-sided.
        changes: header fields that differ, with both values.

    """

    rows: tuple[Row, ...]
    unpaired: int
    difference: float
    interval: tuple[float, float]
    p_value: float
    changes: dict[str, tuple[Any, Any]]

    def table(self) -> str:
        """A plain-text report."""
        width = max(len(row.name) for row in self.rows)
        head = f"{'task':<{width}}  {'pairs':>5}  {'A':>4}  {'B':>4}  {'only A':>6}  {'only B':>6}"
        lines = [f"{name}: {a!r} in A, {b!r} in B" for name, (a, b) in self.changes.items()]
        lines += ["", head, "-" * len(head)]
        for row in self.rows:
            a, b = row.both + row.only_a, row.both + row.only_b
            lines.append(f"{row.name:<{width}}  {row.pairs:>5}  {a:>4}  {b:>4}  {row.only_a:>6}  {row.only_b:>6}")
        low, high = (100 * bound for bound in self.interval)
        lines.append("")
        lines.append(
            f"B - A: {100 * self.difference:+.1f} points (95 % {low:+.1f} to {high:+.1f}), "
            f"exact McNemar p = {self.p_value:.3g}; {self.unpaired} unpaired episodes left out"
        )
        lines.append(self._sample_size())
        return "\n".join(lines)

    def _sample_size(self) -> str:
        total = self.rows[-1]
        needed = required_pairs(total.only_a / total.pairs, total.only_b / total.pairs)
        if needed is None:
            return "no difference was seen, so no sample size can be named"
        return f"a difference of this size needs about {needed} paired episodes for p < 0.05 in 80 % of repetitions"


def compare(a: Path, b: Path) -> Comparison:
    """Compares two evaluations' folders.

    Raises:
        UserError: not evaluations, no common episodes, or an episode that did not start from the same state, up to
            :data:`SAME_START`.

    """
    changes = differences(read_header(a), read_header(b))
    runs = [{record.key: record for record in read_records(folder)} for folder in (a, b)]
    common = [key for key in runs[0] if key in runs[1] and all(finished(run[key]) for run in runs)]
    if not common:
        raise UserError(
            f"{a} and {b} have no finished episodes in common; evaluate both with the same protocol, or give --unpaired"
        )
    for key in common:
        if reason := different_start(runs[0][key], runs[1][key]):
            raise UserError(f"episode {key} started differently in {a} and {b}: {reason}")
    tasks: dict[str, list[str]] = defaultdict(list)
    for key in sorted(common):
        tasks[key.rsplit("/", 2)[0]].append(key)
    successes = [{key: run[key].success for key in common} for run in runs]
    rows = [Row(task, *paired_counts(*({k: s[k] for k in keys} for s in successes))) for task, keys in tasks.items()]
    total = Row("all", *paired_counts(*successes))
    gains = [np.array([int(successes[1][k]) - int(successes[0][k]) for k in keys]) for keys in tasks.values()]
    return Comparison(
        rows=(*rows, total),
        unpaired=len(runs[0].keys() | runs[1].keys()) - len(common),
        difference=float(np.concatenate(gains).mean()),
        interval=stratified_bootstrap(gains),
        p_value=mcnemar_exact(total.only_a, total.only_b),
        changes=changes,
    )


def compare_unpaired(a: Path, b: Path) -> str:
    """Compares two evaluations of different episodes of the same tasks: rates, their difference and its exact test.

    Raises:
        UserError: not evaluations, no finished episodes, or other tasks.

    """
    sides = [[record for record in read_records(folder) if finished(record)] for folder in (a, b)]
    counts = [Counter(record.key.rsplit("/", 2)[0] for record in side) for side in sides]
    if not counts[0] or counts[0].keys() != counts[1].keys():
        raise UserError(f"{a} has episodes of {sorted(counts[0])}, {b} of {sorted(counts[1])}; evaluate the same tasks")
    (solved_a, total_a), (solved_b, total_b) = ((sum(r.success for r in side), len(side)) for side in sides)
    changes = differences(read_header(a), read_header(b))
    low, high = (100 * bound for bound in newcombe(solved_a, total_a, solved_b, total_b))
    gain = 100 * (solved_b / total_b - solved_a / total_a)
    p_value = boschloo(solved_a, total_a, solved_b, total_b)
    return "\n".join(
        [
            *(f"{name}: {one!r} in A, {other!r} in B" for name, (one, other) in changes.items()),
            "",
            f"A: {solved_a} of {total_a}, B: {solved_b} of {total_b}, as if no episode were the same",
            f"B - A: {gain:+.1f} points (95 % {low:+.1f} to {high:+.1f}), exact Boschloo p = {p_value:.3g}",
        ]
    )


def stratified_bootstrap(groups: Sequence[Int[np.ndarray, " _"]], seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the mean of all values, episodes redrawn within each task (Efron 1979).

    Args:
        groups: per task, the values of its episodes.
        seed: of the redrawing.

    """
    random = np.random.default_rng(seed)
    total = np.zeros(BOOTSTRAP_DRAWS)
    for values in groups:
        total += values[random.integers(0, len(values), (BOOTSTRAP_DRAWS, len(values)))].sum(1)
    low, high = np.quantile(total / sum(len(values) for values in groups), (0.025, 0.975))
    return float(low), float(high)


def different_start(left: EpisodeRecord, right: EpisodeRecord) -> str:
    """How the starts of one episode differ, and what to do; empty if they are the same."""
    if left.settled_hash == right.settled_hash:
        return ""
    states = [np.asarray(record.settled_state) for record in (left, right)]
    if states[0].shape != states[1].shape or not states[0].size:
        return f"their states have {len(states[0])} and {len(states[1])} values; use one simulator for both"
    furthest = float(np.abs(states[0] - states[1]).max())
    if furthest <= SAME_START:
        return ""
    return f"their states differ by {furthest:.2g}, at most {SAME_START:g} is the same; use one simulator for both"


def finished(record: EpisodeRecord) -> bool:
    """Whether the episode finished, as success or failure, and was not lost to a fault."""
    return record.outcome in ("success", "failure")
