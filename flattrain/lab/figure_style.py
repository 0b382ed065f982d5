"""How figures look, on paper and on screens: colours, markers, and the SVG that goes into a page.

The SVG has no fonts, dates or random identifiers of its own, so equal figures are equal bytes. Its colours
are CSS variables, so that the page decides between light and dark (`lab.page_style`).
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

# On white and, at the same place, on near-black, each with a contrast of 3 to 1 or more. Ordered so that the
# first ones are told apart with the usual kinds of colour blindness; a marker of its own goes with every one.
PALETTE = (
    "#0072b2", "#c94f00", "#00835f", "#b5578c", "#2a86c0",
    "#9a6a00", "#6f4e9c", "#666666", "#7a2e0e", "#111111",
)  # fmt: skip
DARK = (
    "#56b0f0", "#ff8c42", "#2fc79a", "#e79cc8", "#8fd3ff",
    "#f0bd3a", "#b79ae0", "#aaaaaa", "#d89070", "#f5f5f5",
)  # fmt: skip
MARKERS = "osD^vPX*<>"
DASHES = ("-", "--", "-.", ":")
GRID, INK, PAPER = "#b0b0b0", "#000000", "#ffffff"
WIDTH = 4.8  # inches; narrow, so that letters stay readable on a telephone

STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.alpha": 0.35,
    "svg.fonttype": "none",
    "svg.hashsalt": "flattrain",
    "figure.dpi": 100,
    "hatch.linewidth": 0.6,
}


@contextmanager
def styled() -> Iterator[None]:
    """The style for drawing and for writing: matplotlib reads it at both."""
    with plt.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # the page has other fonts
        yield


def plain(text: object, most: int = 60) -> str:
    """Text as it stands: no mathematics between dollars, no hidden labels, the middle cut where long."""
    words = " ".join(str(text).split())
    if len(words) > most:
        half = (most - 1) // 2
        words = f"{words[:half]}…{words[-half:]}"
    return (" " if words.startswith("_") else "") + words.replace("$", r"\$")


def save_png(figure: Figure, path: Path) -> None:
    """The figure as a picture of its own, on white."""
    with styled():
        figure.savefig(path, dpi=150, metadata={"Software": None})


def svg(figure: Figure, alt: str, key: str) -> str:
    """The figure as inline SVG with a text for those who do not see it; `key` keeps ids apart on a page."""
    buffer = io.StringIO()
    with styled():
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    plt.close(figure)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].strip()
    for block in (r"<metadata>.*?</metadata>", r"<style .*?</style>", r"<!--.*?-->"):
        text = re.sub(block, "", text, flags=re.DOTALL)
    text = re.sub(r"\b(id=\"|href=\"#|url\(#)", rf"\g<1>{key}-", text)
    text = re.sub(r"\b(fill|stroke): (#[0-9a-f]{6})", lambda m: f"{m[1]}: {_themed(m[2])}", text)
    text = re.sub(r"(font: [^;\"]*?px) [^;\"]*", r"\1 system-ui, sans-serif", text)
    text = re.sub(r"\n\s*", "\n", text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(alt)}" ', 1)


def _themed(colour: str) -> str:
    known = {INK: "currentColor", PAPER: "var(--paper)", GRID: "var(--line)"}
    if colour in known:
        return known[colour]
    return f"var(--c{PALETTE.index(colour)})" if colour in PALETTE else colour


def variables(colours: tuple[str, ...]) -> str:
    """The CSS variables of a palette."""
    return " ".join(f"--c{k}: {colour};" for k, colour in enumerate(colours))
