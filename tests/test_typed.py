"""Settings: types, near matches, the command line."""

import dataclasses
from typing import Literal

import pytest

from wmjax.core.errors import UserError
from wmjax.core.settings import build, convert, merge, parse_overrides, parse_value


@dataclasses.dataclass(frozen=True)
class Inner:
    rank: int = 16
    kind: Literal["flow", "mse"] = "flow"


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Inner = Inner()
    rate: float = 1e-3
    tasks: tuple[int, ...] = ()
    path: str | None = None
    on: bool = False
    cameras: tuple[str, ...] = ()


def test_nested_values_and_defaults() -> None:
    built = build(Outer, {"inner": {"rank": 4}, "rate": 1, "tasks": [1, 2], "path": None})
    assert built == Outer(Inner(rank=4), 1.0, (1, 2), None, False)
    assert isinstance(built.rate, float)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"inner": {"rnak": 4}}, ["inner.rnak", "inner.rank"]),
        ({"inner": {"rank": "4"}}, ["inner.rank", "'4'", "int"]),
        ({"inner": {"rank": True}}, ["inner.rank", "True"]),
        ({"inner": {"kind": "flwo"}}, ["inner.kind", "'flwo'", "'flow'"]),
        ({"inner": 3}, ["inner", "3"]),
        ({"tasks": [1, "x"]}, ["tasks[1]", "'x'"]),
        ({"on": 1}, ["on", "1"]),
        ({"path": 3}, ["path", "3"]),
    ],
)
def test_errors_name_setting_value_and_fix(values: dict, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        build(Outer, values)
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)


def test_command_line_values_are_toml_or_strings() -> None:
    words = ["--inner.rank=32", "--rate", "5e-4", "--tasks", "[0, 3]", "--path", "/data/x", "--on", "true"]
    assert build(Outer, parse_overrides(words)) == Outer(Inner(rank=32), 5e-4, (0, 3), "/data/x", True)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("top", ("top",)),
        ("top,wrist", ("top", "wrist")),
        (" top , wrist ", ("top", "wrist")),
        ('["a,b"]', ("a,b",)),
        ("[]", ()),
    ],
)
def test_names_need_no_brackets(text: str, names: tuple[str, ...]) -> None:
    assert build(Outer, parse_overrides(["--cameras", text])).cameras == names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"cameras is '', with an empty name; write names as in a,b, or \[\] for none"),
        ("top,", "'top,', with an empty name"),
        ("top,,wrist", "with an empty name"),
        ("[top,wrist]", r"cameras is '\[top,wrist\]', not a list; write names as in a,b or \[\"a\", \"b\"\]"),
        ("top,'wrist", "not a list; write names as in a,b"),
    ],
)
def test_a_text_that_is_not_a_list_of_names_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        convert(parse_value(text), tuple[str, ...], "cameras")


def test_command_line_without_value_or_name() -> None:
    with pytest.raises(UserError, match="--rate has no value"):
        parse_overrides(["--rate"])
    with pytest.raises(UserError, match="'rate'"):
        parse_overrides(["rate"])


def test_merge_is_by_key_and_leaves_its_arguments_alone() -> None:
    base = {"a": {"x": 1, "y": 2}, "b": 1}
    assert merge(base, {"a": {"y": 3}, "b": {"z": 1}}) == {"a": {"x": 1, "y": 3}, "b": {"z": 1}}
    assert base == {"a": {"x": 1, "y": 2}, "b": 1}
