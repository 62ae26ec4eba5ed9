"""The list of slow tests: written from a log, and about files that exist."""

from pathlib import Path

import pytest

from tests.conftest import SLOW, pytest_collection_modifyitems
from tools.slow_tests import slow

LOG = """
============================= slowest durations ==============================
12.00s setup    tests/a.py::test_one
2.50s call     tests/b.py::test_two[some words]
1.50s call     tests/b.py::test_three
0.60s teardown tests/b.py::test_three
3.00s call     tests/a.py::test_four
0.10s call     tests/c.py::test_five
=========================== short test summary info ============================
"""


def test_it_names_what_took_long_and_files_whose_fixtures_did():
    assert slow(LOG) == ["tests/a.py", "tests/b.py::test_three", "tests/b.py::test_two[some words]"]


def test_its_files_exist():
    root = Path(__file__).parents[1]
    names = {line.partition("::")[0] for line in SLOW if not line.startswith("#")}
    assert names and not [name for name in names if not (root / name).is_file()]


def test_what_is_long_is_slow_too(request: pytest.FixtureRequest):
    """The fast tier's ``-m "not slow and not sim"`` overrides the ``-m "not long"`` of the configuration."""

    def marked_slow(*marks: str) -> bool:
        item = pytest.Function.from_parent(request.node.parent, name="made", callobj=lambda: None)
        for mark in marks:
            item.add_marker(mark)
        pytest_collection_modifyitems([item])
        return item.get_closest_marker("slow") is not None

    assert marked_slow("long") and not marked_slow() and not marked_slow("sim")
