"""Several evaluations of the same episodes beside one baseline: one row each, paired, with corrected p values."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wmjax.analysis.comparison import Comparison, compare, finished
from wmjax.analysis.intervals import wilson
from wmjax.analysis.paired_tests import holm
from wmjax.rollout.results import actor_label, read_header, read_records

IDENTITY = ("checkpoint.hash", "experiment.recipe", "experiment.seed", "recipe_hash")
"""Header fields that differ between any two policies; names and ``training`` explain them."""


@dataclasses.dataclass(frozen=True)
class Overview:
    """Evaluations against a baseline, in the order given.

    Attributes:
        names: of the baseline and of the others: recipe and training seed, or folders where these are not enough.
        baseline: episodes that it solved, and that it finished.
        comparisons: of each other with the baseline.
        adjusted: their McNemar p values after Holm's correction for the number of comparisons.

    """

    names: tuple[str, ...]
    baseline: tuple[int, int]
    comparisons: tuple[Comparison, ...]
    adjusted: tuple[float, ...]

    def table(self) -> str:
        """A plain-text report."""
        width = max(map(len, self.names))
        head = (
            f"{'evaluation':<{width}}  {'success':>7}  {'95 %':>11}  {'points':>6}  {'95 %':>16}  {'only base':>9}  "
            f"{'only it':>7}  {'p':>6}  {'Holm':>6}"
        )
        lines = [*self._differences(), head, "-" * len(head)]
        lines.append(f"{self.names[0]:<{width}}  {_rate(*self.baseline)}  (the baseline)")
        for name, found, adjusted in zip(self.names[1:], self.comparisons, self.adjusted, strict=True):
            row, (low, high) = found.rows[-1], found.interval
            interval = f"{100 * low:+.1f} to {100 * high:+.1f}"
            lines.append(
                f"{name:<{width}}  {_rate(row.both + row.only_b, row.pairs)}  {100 * found.difference:>+6.1f}  "
                f"{interval:>16}  {row.only_a:>9}  {row.only_b:>7}  {found.p_value:>6.3f}  {adjusted:>6.3f}"
            )
        lines.append(
            "points: difference to the baseline on the episodes that both finished; exact McNemar p, then Holm's"
        )
        lines.append("correction for their number. They say nothing about other training seeds (--a and --b do).")
        return "\n".join(lines)

    def _differences(self) -> list[str]:
        """The differences beside the policies, a line per field and evaluation: protocol, scale, step, simulator."""
        lines = []
        for name, found in zip(self.names[1:], self.comparisons, strict=True):
            changes = {k: v for k, v in found.changes.items() if k not in IDENTITY}
            lines += [f"{name}: {field} is {b!r}, {a!r} in {self.names[0]}" for field, (a, b) in changes.items()]
        return lines


def overview(baseline: Path, others: Sequence[Path]) -> Overview:
    """Compares every other evaluation with the baseline.

    Raises:
        UserError: see :func:`wmjax.analysis.comparison.compare`.

    """
    comparisons = tuple(compare(baseline, other) for other in others)
    folders = (baseline, *others)
    names = tuple(_name(read_header(folder)) for folder in folders)
    if len(set(names)) < len(names):
        names = tuple(f"{name} ({folder})" for name, folder in zip(names, _apart(folders), strict=True))
    done = [record.success for record in read_records(baseline) if finished(record)]
    return Overview(names, (sum(done), len(done)), comparisons, holm([found.p_value for found in comparisons]))


def _name(header: Mapping[str, Any]) -> str:
    seed = (header.get("experiment") or {}).get("seed")
    return actor_label(header) if seed is None else f"{actor_label(header)} s{seed}"


def _apart(folders: Sequence[Path]) -> list[str]:
    """The parts of paths that they do not all share."""
    paths = [folder.resolve().parts for folder in folders]
    shared = {part for part in paths[0] if all(part in path for path in paths)}
    return [
        "/".join(part for part in path if part not in shared) or folder.name
        for path, folder in zip(paths, folders, strict=True)
    ]


def _rate(successes: int, pairs: int) -> str:
    low, high = (100 * bound for bound in wilson(successes, pairs))
    return f"{f'{successes}/{pairs}':>7}  {f'{low:.0f} to {high:.0f} %':>11}"
