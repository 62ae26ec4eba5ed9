"""The report's section on controls: other evaluations of the same episodes, in pairs."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wmjax.analysis.comparison import Comparison
from wmjax.reporting.charts import interval_bar
from wmjax.reporting.html import Html, element, fold, join, labelled, muted, plain, row, section, table
from wmjax.rollout.results import actor_label

COLUMNS = (
    *("Other", "Pairs", "Other solved", "This solved", "Only other", "Only this"),
    *("Difference", "-100 to +100 points", "p"),
)


def controls(comparisons: Sequence[tuple[Path, Mapping[str, Any], Comparison]], folder: Path) -> Html:
    """Paired comparisons with other evaluations.

    Args:
        comparisons: the other's folder and header, and the comparison, in which the other is run A.
        folder: of this evaluation.

    """
    if not comparisons:
        text = "None given. One success rate says nothing about what caused it; compare it with its controls, in pairs:"
        command = f"python -m wmjax.report {shlex.quote(str(folder))} --compare OTHER_EVALUATION"
        return section("controls", "Controls", muted(text), element("pre", element("code", command)))
    note = (
        "This evaluation minus the other, on the episodes that both finished; a positive difference favours this one. "
        "Intervals: bootstrap over episodes within tasks. p: exact McNemar test, two-sided"
        + (", not corrected for the number of comparisons. " if len(comparisons) > 1 else ". ")
        + "Neither says anything about other training seeds."
    )
    rows = [_row(*comparison) for comparison in comparisons]
    more = (_more(*comparison) for comparison in comparisons)
    return section("controls", "Controls", table(COLUMNS, rows, "cards"), muted(note), *more)


def _row(other: Path, header: Mapping[str, Any], result: Comparison) -> list[Html]:
    total = result.rows[-1]
    low, high = (100 * bound for bound in result.interval)
    name = join((element("b", actor_label(header)), element("small", other)))
    return [
        element("th", name, scope="row"),
        labelled("Pairs", total.pairs),
        labelled("Other solved", total.both + total.only_a),
        labelled("This solved", total.both + total.only_b),
        labelled("Only other", total.only_a),
        labelled("Only this", total.only_b),
        labelled("Difference", f"{100 * result.difference:+.1f} points ({low:+.1f} to {high:+.1f})"),
        element("td", interval_bar(result.difference, result.interval, -1.0, 1.0), class_="plot"),
        labelled("p", f"{result.p_value:.3g}"),
    ]


def _more(other: Path, header: Mapping[str, Any], result: Comparison) -> Html:
    rows = [row(r.name, r.pairs, r.both + r.only_a, r.both + r.only_b, r.only_a, r.only_b) for r in result.rows[:-1]]
    tasks_table = table(("Task", "Pairs", "Other solved", "This solved", "Only other", "Only this"), rows)
    changes = [row(name, plain(a), plain(b)) for name, (a, b) in result.changes.items()]
    changed = table(("Setting", "Other", "This"), changes) if changes else element("p", "The headers are equal.")
    left_out = muted(f"Unpaired episodes, left out: {result.unpaired}.")
    place = muted(f"Other: {other}")
    return fold(f"Against {actor_label(header)}: tasks, and what differs", place, tasks_table, left_out, changed)
