"""HTML as text that knows whether it is safe: whatever is not `Markup` is escaped where it enters an element.

A page cannot be made from user text by accident: only `element` makes `Markup`, and a plain string inside one is
text. Control characters, which HTML does not allow, and those that turn the direction of writing, with which a name
could pose as another, are shown as �.
"""

import html
import re
from collections.abc import Iterable, Sequence
from typing import Any

VOID = frozenset({"meta", "img", "br"})
UNSAFE = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def escaped(text: object) -> Markup:
    """Text as HTML, in an element or a quoted attribute; Markup stays what it is."""
    if isinstance(text, Markup):
        return text
    return Markup(html.escape(UNSAFE.sub("\N{REPLACEMENT CHARACTER}", str(text)), quote=True))


def element(name: str, /, *children: object, **attributes: Any) -> Markup:
    """An element. `class_` becomes class, `aria_label` aria-label; an attribute of None is left out."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escaped(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    inner = "".join(map(escaped, children))
    return Markup(f"<{name}{given}>") if name in VOID else Markup(f"<{name}{given}>{inner}</{name}>")


def joined(parts: Iterable[object], separator: str = "\n") -> Markup:
    """Parts one after the other."""
    return Markup(separator.join(map(escaped, parts)))


def table(header: Sequence[object], rows: Iterable[Sequence[object]], *, label: str) -> Markup:
    """A table whose first column names the rows, and which scrolls by itself where it is too wide."""
    head = element("tr", *(element("th", name, scope="col") for name in header))
    body = (
        element("tr", element("th", row[0], scope="row"), *(element("td", cell) for cell in row[1:])) for row in rows
    )
    found = element("table", element("thead", head), element("tbody", *body))
    # The keyboard can scroll only what it can reach.
    return element("div", found, class_="wide", role="region", aria_label=label, tabindex="0")
