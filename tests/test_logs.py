"""Progress that a log file can hold."""

from wmjax.core.logs import bar


def test_a_bar_fills_from_nothing_to_all() -> None:
    assert bar(0, 4, 8) == "[........]" and bar(1, 4, 8) == "[##......]" and bar(4, 4, 8) == "[########]"
    assert bar(5, 4, 8) == bar(4, 4, 8)  # a resumed stage may know better
    assert bar(0, 0, 8) == "[........]"
