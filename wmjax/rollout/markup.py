"""HTML and inline SVG that is escaped by construction: text is escaped unless it is :class:`Html` already."""

import html
from collections.abc import Iterable

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
