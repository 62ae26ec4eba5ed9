"""HTML and inline SVG that is escaped by construction: documents, headings, tables, definition lists, small texts.

Every text that is not :class:`Html` already is escaped.
"""

import base64
import html
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from wmjax.core.files import atomic_path
from wmjax.core.paths import require_place

CONTENT_SECURITY_POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"
"""With this, a browser loads no external resource and runs no script, independent of a page's texts."""
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
        attributes: escaped; ``class_`` is written as ``class`` and ``aria_label`` as ``aria-label``. True writes the
            bare name, None and False leave the attribute out.

    """
    start = tag + "".join(_attribute(name, value) for name, value in attributes.items())
    return Html(f"<{start}>" if tag in VOID else f"<{start}>{join(children)}</{tag}>")


def join(children: Iterable[object]) -> Html:
    """Concatenates children, escaped unless they are markup; None is left out."""
    texts = (child if isinstance(child, Html) else html.escape(str(child)) for child in children if child is not None)
    return Html("".join(texts))


def _attribute(name: str, value: object) -> str:
    name = name.rstrip("_").replace("_", "-")
    if value is None or value is False:
        return ""
    return f" {name}" if value is True else f' {name}="{html.escape(str(value))}"'


def write_document(path: Path, title: str, stylesheet: str, body: Iterable[object]) -> None:
    """Writes one page that needs no other file, atomically and piece by piece.

    Args:
        path: the HTML file.
        title: of the browser's window.
        stylesheet: a file of this folder, which ``page.css`` precedes.
        body: the page's content; each part is written before the next one is made, so that videos need not fit into
            memory together.

    Raises:
        UserError: the path is a folder, is below a file, or cannot be written.

    """
    require_place(path, "--out", "HTML file")
    # A file's name need not be UTF-8: what cannot be encoded is shown as \\udc... on the page.
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(f'<!DOCTYPE html>\n<html lang="en">{_head(title, stylesheet)}<body><main>')
        for part in body:
            file.write(join([part]) + "\n")
        file.write("</main></body></html>\n")


def _head(title: str, stylesheet: str) -> Html:
    css = (files("wmjax.reporting").joinpath(name).read_text(encoding="utf-8") for name in ("page.css", stylesheet))
    return element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=CONTENT_SECURITY_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", Html("\n".join(css))),
    )


DOT = " \N{MIDDLE DOT} "
DASH = "\N{EM DASH}"


def section(name: str, heading: str, *content: object) -> Html:
    """A section of the report; ``name`` is its anchor."""
    return element("section", element("h2", heading), *content, id=name)


def muted(text: str) -> Html:
    """A paragraph in the secondary text colour."""
    return element("p", text, class_="muted")


def table(columns: Sequence[str], rows: Iterable[Iterable[Html]], css: str = "plain") -> Html:
    """A table that scrolls sideways on narrow screens; with the class ``cards`` it becomes a list there."""
    head = element("thead", element("tr", *(element("th", name, scope="col") for name in columns)))
    body = element("tbody", *(element("tr", *row) for row in rows))
    return element("div", element("table", head, body, class_=css), class_="scroll")


def row(name: object, *values: object) -> list[Html]:
    """A row: its heading and its values."""
    return [element("th", name, scope="row"), *(element("td", value) for value in values)]


def labelled(label: str, value: object, css: str = "number") -> Html:
    """A cell with its column's name, which narrow screens show beside the value."""
    return element("td", value, class_=css, data_label=label)


def definitions(values: Mapping[str, object]) -> Html:
    """Names and their values as a list in two columns."""
    pairs = (part for name, value in values.items() for part in (element("dt", name), element("dd", value)))
    return element("dl", *pairs, class_="facts")


def legend(entries: Iterable[tuple[Html, Iterable[object]]]) -> Html:
    """The legend of a figure: each mark with its explanation."""
    return element("ul", *(element("li", mark, *content) for mark, content in entries), class_="legend")


def key(kind: str) -> Html:
    """The mark of a legend in the colour that the style sheet gives to ``kind``."""
    return element("span", class_=f"key {kind}")


def data_uri(content: bytes, kind: str) -> str:
    """A file's content as a ``data:`` address; ``kind`` is its media type, such as ``video/mp4``."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def video(content: bytes, label: str, **attributes: object) -> Html:
    """An embedded mp4 with controls and without sound; ``label`` is what assistive technology reads."""
    return element(
        "video", controls=True, muted=True, playsinline=True, **attributes,
        aria_label=label, src=data_uri(content, "video/mp4"),
    )  # fmt: skip


def fold(summary: str, *content: object) -> Html:
    """Content that is folded away."""
    return element("details", element("summary", summary), *content)


def plain(value: Any) -> str:
    """A setting's value: text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def percent(rate: float) -> str:
    """A rate in [0, 1] with one decimal."""
    return f"{100 * rate:.1f} %"
