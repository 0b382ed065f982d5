"""HTML from plain values. Whatever is not markup made here is escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from flattrain.lab.page_style import STYLE

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"  # browsers refuse all else


class Markup(str):
    """Text that is HTML already."""


class Cell(NamedTuple):
    """A table's cell with a class of the style sheet and the heading that narrow screens show before it."""

    content: Any
    kind: str = ""
    head: str = ""


def text(value: Any) -> Markup:
    """Escaped, unless it is markup."""
    return value if isinstance(value, Markup) else Markup(html.escape(str(value)))


def joined(parts: Iterable[Any], between: str = "") -> Markup:
    """The parts one after another, each escaped unless it is markup; `between` is markup."""
    return Markup(between.join(text(part) for part in parts))


def tag(name: str, *content: Any, **attributes: str) -> Markup:
    """<name attributes>content</name>; `class_` stands for class, and _ for -."""
    shown = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(value)}"'
        for key, value in attributes.items()
        if value
    )
    return Markup(f"<{name}{shown}>{joined(content)}</{name}>")


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[Any]], kind: str = "") -> Markup:
    """A table that scrolls by itself where it is wider than the page; the first cell of a row heads it."""
    top = tag("tr", *(tag("th", name, scope="col") for name in head))
    body = [tag("tr", *(_cell(k, entry) for k, entry in enumerate(row))) for row in rows]
    inner = tag(
        "table", tag("caption", caption), tag("thead", top), tag("tbody", joined(body, "\n")), class_=kind
    )
    return tag("div", inner, class_="wide", tabindex="0", role="region", aria_label=caption)


def _cell(k: int, entry: Any) -> Markup:
    cell = entry if isinstance(entry, Cell) else Cell(entry)
    if k == 0:
        return tag("th", cell.content, scope="row", class_=cell.kind)
    return tag("td", cell.content, class_=cell.kind, data_head=cell.head)


def folded(summary: str, *content: Any) -> Markup:
    """Content that a click opens."""
    return tag("details", tag("summary", summary), *content)


def preformatted(words: str, label: str) -> Markup:
    """Text as it stands, in a box that scrolls."""
    return tag("pre", words, tabindex="0", role="region", aria_label=label)


def document(title: str, body: Iterable[Any]) -> str:
    """The whole page: one file, no script, nothing fetched."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><link rel="icon" href="data:,">'
        f"<title>{text(title)}</title><style>{STYLE}</style></head><body>\n"
        f'<a class="skip" href="#main">To the content</a><main id="main">\n{joined(body, chr(10))}\n'
        "</main></body></html>\n"
    )
