"""Headings, tables and small texts that the report's sections share."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from wmjax.rollout.markup import Html, element

DOT = " \N{MIDDLE DOT} "
DASH = "\N{EM DASH}"


def actor_label(header: Mapping[str, Any]) -> str:
    """Who acted, in a few words: the recipe of a policy, the name of a scripted actor."""
    experiment = header.get("experiment")
    if isinstance(experiment, Mapping):
        return str(experiment.get("recipe", "policy"))
    return str(header.get("actor", "unknown actor"))


def section(name: str, heading: str, *content: object) -> Html:
    """A section of the report; ``name`` is its anchor."""
    return element("section", element("h2", heading), *content, id=name)


def muted(text: str) -> Html:
    """A paragraph of lesser weight."""
    return element("p", text, class_="muted")


def table(columns: Sequence[str], rows: Iterable[Iterable[Html]], css: str = "plain") -> Html:
    """A table that scrolls sideways where it does not fit; with the class ``cards`` it becomes a list there."""
    head = element("thead", element("tr", *(element("th", name, scope="col") for name in columns)))
    body = element("tbody", *(element("tr", *row) for row in rows))
    return element("div", element("table", head, body, class_=css), class_="scroll")


def row(name: object, *values: object) -> list[Html]:
    """A row: its heading and its values."""
    return [element("th", name, scope="row"), *(element("td", value) for value in values)]


def labelled(label: str, value: object, css: str = "number") -> Html:
    """A cell that carries its column's name, which narrow screens show beside it."""
    return element("td", value, class_=css, data_label=label)


def fold(summary: str, *content: object) -> Html:
    """Content that is folded away."""
    return element("details", element("summary", summary), *content)


def plain(value: Any) -> str:
    """A setting's value: text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def percent(rate: float) -> str:
    """A rate in [0, 1] with one decimal."""
    return f"{100 * rate:.1f} %"
