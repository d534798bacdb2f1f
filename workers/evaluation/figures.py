"""What all figures of a report share: paper, colours, who is drawn how, and a picture that stands in a page.

Drawn with matplotlib's objects, without pyplot and its global state. Who is who is told by marker and line style as
well as by colour, and the colours are those of Okabe and Ito (2008), which the colour-blind can tell apart; so a
figure reads in black and white too. Text is drawn as shapes, so that it looks the same everywhere, and is never read
as a formula, whatever a user called a layer. Nothing in a picture depends on the time or on chance: the same numbers
give the same bytes.
"""

import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, NullLocator

SETTINGS: Any = {
    "svg.hashsalt": "stillhouse",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.parse_math": False,
    "axes.unicode_minus": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.titlesize": 9,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "hatch.linewidth": 0.6,
}
WIDTH = 9.0  # inches, of a figure as wide as the page
LONGEST_NAME = 28  # characters, of a layer or class in a figure

BLUE, VERMILION, GREEN, ORANGE, SKY, PURPLE = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7"
BLACK, GREY = "#000000", "#767676"


@dataclass(frozen=True)
class Look:
    """How one model is drawn, in every figure."""

    colour: str
    marker: str
    line: Any


LOOKS: Mapping[str, Look] = {
    "teacher": Look(BLACK, "D", "-."),
    "student": Look(BLUE, "o", "-"),
    "control": Look(VERMILION, "s", (0, (6, 2, 1, 2))),
    "random": Look(ORANGE, "v", ":"),
    "l2": Look(GREEN, "^", "--"),
    "taylor": Look(PURPLE, "P", (0, (3, 1, 1, 1))),
    "scratch": Look(VERMILION, "X", (0, (5, 3))),
}
OTHER = Look(GREY, "*", ":")


def look_of(role: str) -> Look:
    """How a model is drawn; all that have no look of their own look alike."""
    return LOOKS.get(role, OTHER)


@contextmanager
def paper() -> Iterator[None]:
    """The settings of our figures; matplotlib's own are as before afterwards."""
    with mpl.rc_context(SETTINGS):
        yield


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """An empty figure, in inches; make it on `paper`."""
    return Figure(figsize=(width, height), layout="constrained")


def svg_of(figure: Figure, title: str) -> bytes:
    """The finished figure as an SVG file."""
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": "Stillhouse", "Title": title})
    return file.getvalue()


def grid(axes: Axes, which: str = "both") -> None:
    """Faint lines along which values are read."""
    axes.grid(visible=True, axis=which, color="0.88", linewidth=0.6)  # type: ignore[arg-type]


def short(name: str) -> str:
    """A name that fits beside a bar: its end, which tells layers apart, on one line."""
    line = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in name)
    return line if len(line) <= LONGEST_NAME else "…" + line[-LONGEST_NAME + 1 :]


def compact(value: float, _position: int | None = None) -> str:
    """1500 as 1.5k, 3e6 as 3M, 0.001 as 0.001, 1e-7 as 1e-7."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    if value and abs(value) < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:.3g}"


def percentage(value: float, _position: int | None = None) -> str:
    """0.875 as 87.5%."""
    return f"{100 * value:.4g}%"


def logarithmic(axes: Axes, which: str) -> None:
    """A logarithmic axis whose numbers are written out; call it when the limits are set."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    low, high = axes.get_xlim() if which == "x" else axes.get_ylim()
    if high < 4 * low:  # not a power of ten in sight
        axis.set_major_locator(MaxNLocator(5))
        axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(compact))
    axis.set_minor_formatter(FuncFormatter(_some) if high < 12 * low else NullFormatter())


def _some(value: float, _position: int | None = None) -> str:
    return compact(value) if f"{value:e}"[0] in "235" else ""


# Inside a page ----------------------------------------------------------------------------------------------------

HEAD = re.compile(r"^.*?(?=<svg)", re.DOTALL)
METADATA = re.compile(r"\s*<metadata>.*?</metadata>", re.DOTALL)
COMMENT = re.compile(r"\s*<!--.*?-->", re.DOTALL)
STYLE_ELEMENT = re.compile(r'\s*<defs>\s*<style type="text/css">.*?</style>\s*</defs>', re.DOTALL)
STYLE = re.compile(r' style="([^"]*)"')
IDENTIFIER = re.compile(r'( id="|href="#|url\(#)')


def inlined(svg: bytes, name: str, label: str) -> str:
    """The picture as an element of a page: names of its own, attributes for styles, and `label` for who cannot see it.

    A page may hold many pictures; without names of their own they would clip each other, and a style element of one
    would hold for all the page. Attributes instead of inline styles let the page's policy forbid those.
    """
    text = svg.decode()
    for pattern in (HEAD, METADATA, COMMENT, STYLE_ELEMENT):
        text = pattern.sub("", text)
    text = STYLE.sub(lambda style: _attributes(style[1]), text)
    text = IDENTIFIER.sub(rf"\g<1>{name}-", text)
    spoken = f'role="img" aria-label="{label}" stroke-linejoin="round" stroke-linecap="butt"'
    return text.replace("<svg ", f"<svg {spoken} ", 1).strip()


def _attributes(style: str) -> str:
    declared = (part.split(":", 1) for part in style.split(";") if ":" in part)
    return "".join(f' {name.strip()}="{value.strip()}"' for name, value in declared)
