"""The tables of accelerators in docs/scaling.md are those of the committed results."""

import copy
import json
from pathlib import Path

from benchmarks.topologies import EVERY, RESULTS, ROWS, broken, growth, table

DOCUMENT = Path(__file__).parents[2] / "docs" / "scaling.md"


def test_the_document_has_the_tables_of_the_results() -> None:
    results = json.loads(RESULTS.read_text())
    assert {row.options for row in ROWS if row.most is not None} <= set(results) <= {row.options for row in EVERY}
    assert table(results) in DOCUMENT.read_text() and growth(results) in DOCUMENT.read_text()
    assert broken(results) == []


def test_a_program_that_needs_too_much_memory_is_named() -> None:
    results = copy.deepcopy(json.loads(RESULTS.read_text()))
    row = next(row for row in ROWS if row.most is not None)
    results[row.options] = copy.deepcopy(next(iter(results.values())))
    results[row.options]["memory"]["needed_gb"] = row.most + 0.5
    assert broken(results) == [f"{row.options}: {row.most + 0.5:.2f} GB, at most {row.most:g}"]
