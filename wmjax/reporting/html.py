"""HTML and inline SVG that is escaped by construction, and the headings, tables and small texts of the pages.

Every text that is not :class:`Html` already is escaped.
"""

import html
import json
from collections.abc import Iterable, Sequence
from typing import Any

VOID = frozenset({"br", "hr", "meta"})
"""Elements without a closing tag."""


class Html(str):
    """Finished markup."""

    __slots__ = ()


def element(tag: str, *children: object, **attributes: object) -> Html:
    """One element.

    Args:
        tag: its name.
        children: markup, or anything else, whose text is escaped; None is left out.
        attributes: escaped; ``class_`` stands for ``class`` and ``aria_label`` for ``aria-label``. True writes the
            bare name, None and False leave the attribute out.

    """
    start = tag + "".join(_attribute(name, value) for name, value in attributes.items())
    return Html(f"<{start}>" if tag in VOID else f"<{start}>{join(children)}</{tag}>")


def join(children: Iterable[object]) -> Html:
    """Children one after the other, escaped where they are not markup; None is left out."""
    texts = (child if isinstance(child, Html) else html.escape(str(child)) for child in children if child is not None)
    return Html("".join(texts))


def _attribute(name: str, value: object) -> str:
    name = name.rstrip("_").replace("_", "-")
    if value is None or value is False:
        return ""
    return f" {name}" if value is True else f' {name}="{html.escape(str(value))}"'


DOT = " \N{MIDDLE DOT} "
DASH = "\N{EM DASH}"


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
