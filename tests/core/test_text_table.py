"""Aligned plain text."""

from wmjax.core.text_table import text_table


def test_columns_are_aligned_and_the_head_is_ruled() -> None:
    rows = [("a", 1.23456, "one"), ("long", None, "another"), ("c", float("nan"), "")]
    assert text_table(("name", "value", "words"), rows, left=(0, -1)).splitlines() == [
        "name  value  words",
        "----  -----  -------",
        "a     1.235  one",
        "long      -  another",
        "c         -",
    ]
