"""Numbers on a command line: read within a range, refused in one line."""

import math

import pytest

from wmjax.core.command import number, whole_number
from wmjax.core.errors import UserError


def test_numbers_within_the_range_are_read() -> None:
    assert [whole_number("n", 0)(text) for text in ("0", "12")] == [0, 12]
    assert [number("n", 0)(text) for text in ("0", "0.5", "1e3")] == [0.0, 0.5, 1000.0]


@pytest.mark.parametrize("text", ["-1", "many", "", "nan", "inf", "-inf", "1e300", str(10**400)])
def test_text_that_is_not_a_number_of_the_range_is_one_line(text: str) -> None:
    for read, words in ((whole_number("minutes", 0), "whole number"), (number("minutes", 0), "number")):
        with pytest.raises(UserError, match=rf"^--minutes is '[^\n]*'; give a {words} from 0 to 1000000$"):
            read(text)


def test_a_fraction_is_not_an_integer() -> None:
    assert math.isclose(number("n", 0)("2.5"), 2.5)
    with pytest.raises(UserError, match=r"--n is '2.5'; give a whole number"):
        whole_number("n", 0)("2.5")
