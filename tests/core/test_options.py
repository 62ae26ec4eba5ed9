"""The flag grammar: settings by their full names, short options for some, and a one-line error for anything else."""

import dataclasses
from typing import Any

import pytest

from wmjax import estimate, train
from wmjax.core.errors import UserError
from wmjax.core.options import CommandParser, Short, number_list
from wmjax.core.settings import Count, Fraction, Settings, build, parse_value


@dataclasses.dataclass(frozen=True)
class Inner(Settings, section="inner"):
    share: Fraction = 0.5
    most: int = 1


@dataclasses.dataclass(frozen=True)
class Outer(Settings, section="outer"):
    count: Count = 3
    tasks: tuple[int, ...] = (0, 1)
    names: tuple[str, ...] = ("a",)
    loud: bool = False
    inner: Inner = dataclasses.field(default_factory=Inner)


SHORTS = {
    "count": Short("count", "how many, in 100 % of cases"),
    "tasks": Short("tasks", "which", number_list),
    "names": Short("names", "who", words=True),
    "share": Short("inner.share", "of it"),
    "loud": Short("loud", "shout", flag=True),
}


def parser() -> CommandParser:
    made = CommandParser("tool", "A tool.")
    made.add_argument("data")
    made.add_argument("--out")
    made.add_settings("outer", SHORTS, Outer())
    return made


def read(line: str) -> tuple[Outer, dict[str, Any]]:
    options, settings = parser().read(line.split())
    return build(Outer, settings["outer"], "outer."), vars(options)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("D", Outer()),
        ("D --count 5 --share 1 --loud --tasks 2,3 --names x y", Outer(5, (2, 3), ("x", "y"), True, Inner(1.0))),
        ("--outer.count 5 D --outer.inner.share=1", Outer(5, inner=Inner(1.0))),
        ("--outer.tasks 2,3 --outer.loud true D", Outer(tasks=(2, 3), loud=True)),
        ("D --tasks none --names x --names y", Outer(tasks=(), names=("x", "y"))),
        ("D --count 5 --outer.count 6", Outer(6)),
    ],
)
def test_short_options_and_full_names_mean_the_same_settings(line: str, expected: Outer) -> None:
    settings, options = read(line)
    assert settings == expected and options == {"data": "D", "out": None}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("D --count 0", "outer.count is 0; it must be at least 1"),
        ("D --count many", "outer.count is 'many'; expected int"),
        ("D --share -1", "outer.inner.share is -1.0; it must be at least 0 and at most 1"),
        ("D --tasks a", "'a' is not a list of numbers"),
        ("D --cuont 3", "unknown option '--cuont'; did you mean --count"),
        ("D --cou 3", "unknown option '--cou'; did you mean --count"),
        ("D stray", "unexpected argument 'stray'; python -m wmjax.tool --help lists the options"),
        ("D --other.count 3", "unknown section of settings 'other'; did you mean outer?"),
        ("D --outer.cuont 3", "unknown setting 'outer.cuont'; did you mean outer.count"),
        ("D --outer.count", "--outer.count has no value; write --outer.count VALUE"),
        ("D --outer.count --loud", "--outer.count has no value; write --outer.count VALUE"),
        ("D --count", "argument --count: expected one argument"),
        ("", "the following arguments are required: data"),
    ],
)
def test_what_cannot_be_read_is_one_line(line: str, message: str) -> None:
    with pytest.raises(UserError) as refusal:
        read(line)
    assert message in str(refusal.value) and "\n" not in str(refusal.value)


def test_the_help_names_the_setting_behind_each_short_option_and_its_default() -> None:
    shown = " ".join(parser().format_help().split())
    for text in ("[--outer.count; default 3]", "[--outer.inner.share; default 0.5]", "[--outer.tasks; default 0,1]",
                 "[--outer.loud]", "100 % of cases", "--outer.NAME VALUE",
                 "Others are --outer.inner.most."):  # fmt: skip
        assert text in shown


@pytest.mark.parametrize(
    ("text", "value"),
    [("0,1", [0, 1]), ("[0, 1]", [0, 1]), ("3", 3), ("a,b", "a,b"), ('"0,1"', "0,1"), ("s3://x/y,z", "s3://x/y,z")],
)
def test_a_list_of_numbers_needs_no_brackets(text: str, value: Any) -> None:
    assert parse_value(text) == value


def test_short_options_of_a_training_name_their_settings() -> None:
    assert "[--train.trackers; default tensorboard]" in " ".join(train.parser().format_help().split())
    assert "[--train.batch_size]" in " ".join(estimate.parser().format_help().split())
    _, settings = train.parser().read(["--tracker", "jsonl,wandb", "--train.steps", "3"])
    assert settings["train"] == {"trackers": ["wandb"], "steps": 3}
    assert estimate.parser().read(["--topology", "cpu:2", "--batch", "8"])[1]["train"] == {"batch_size": 8}
