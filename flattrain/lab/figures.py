"""The figures of a report, each with a title, a line on how to read it, and its content in words."""

from __future__ import annotations

import math
from typing import NamedTuple

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, SymmetricalLogLocator

from flattrain.lab.correlations import NOTE, paint_correlations
from flattrain.lab.figure_style import MARKERS, PALETTE, WIDTH, styled
from flattrain.lab.figures_spec import FigureSpec
from flattrain.lab.painters import PAINTERS, Arm, Canvas, words
from flattrain.lab.recipe import Recipe
from flattrain.lab.results import Table


class Drawn(NamedTuple):
    """A figure with its title, a line on how to read it, and its content in words."""

    title: str
    note: str
    alt: str
    figure: Figure


def draw(spec: FigureSpec, recipe: Recipe, table: Table) -> Drawn:
    """The figure that a recipe asks for."""
    every = list(dict.fromkeys(cell.arm for cell in recipe.cells))
    chosen = spec.settings.get("arms") or every
    arms = [
        Arm(arm, PALETTE[k % len(PALETTE)], MARKERS[k % len(MARKERS)])
        for k, arm in enumerate(every)
        if arm in chosen
    ]
    paint, note = (PAINTERS | {"correlations": (paint_correlations, NOTE)})[spec.kind]
    with styled():
        figure, axes = plt.subplots(figsize=(WIDTH, 3.3), layout="constrained")
        even = recipe.raw["train"]["spacing"] == "linear"
        said = paint(Canvas(axes, spec.settings, table, arms, even))
        _scales(axes, str(spec.settings.get("log") or ""))
        _legend(figure, axes)
    title = str(spec.settings.get("title") or _default_title(spec))
    return Drawn(title, note, f"{title}. {' '.join(said) or 'No finite values.'}", figure)


def _default_title(spec: FigureSpec) -> str:
    s = spec.settings
    return {
        "trajectory": lambda: f"{words(s['quantity'])} during training",
        "scatter": lambda: f"{words(s['y'])} against {words(s['x'])}",
        "sweep": lambda: f"{words(s['quantity'])} against {s['over']}",
        "final": lambda: f"{words(s['quantity'])} at the end",
        "correlations": lambda: f"Every measure against {words(s['y'])} (exploratory)",
    }[spec.kind]()


def _scales(axes: Axes, logarithmic: str) -> None:
    """Logarithmic axes where asked for and where something is positive."""
    for letter, (low, high) in zip("xy", (axes.dataLim.intervalx, axes.dataLim.intervaly), strict=True):
        if letter not in logarithmic:
            continue
        positive = axes.dataLim.minposx if letter == "x" else axes.dataLim.minposy
        if not (math.isfinite(positive) and 0 < positive <= high) or low > high / 3:
            continue  # nothing positive; or so short an axis that a logarithm would only hide its ticks
        setter = axes.set_xscale if letter == "x" else axes.set_yscale
        if low > 0:
            setter("log")
            _log_ticks(axes.xaxis if letter == "x" else axes.yaxis, math.log10(high / low))
            continue
        setter("symlog", linthresh=10 ** math.floor(math.log10(max(positive, 1e-6 * high))))
        locator = (axes.xaxis if letter == "x" else axes.yaxis).get_major_locator()
        if isinstance(locator, SymmetricalLogLocator):
            locator.set_params(numticks=7)


def _log_ticks(axis: Axis, decades: float) -> None:
    """Powers of ten, and on short axes 2 and 5 between them: more would run into one another."""
    if decades < 1.5:
        axis.set_minor_locator(LogLocator(subs=(2, 5)))
        for setter in (axis.set_major_formatter, axis.set_minor_formatter):
            setter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        axis.set_minor_formatter(NullFormatter())


def _legend(figure: Figure, axes: Axes) -> None:
    """Below the axes, in as many columns as the labels allow."""
    handles, labels = axes.get_legend_handles_labels()
    if not handles:
        return
    columns = max(1, min(4, 66 // (max(map(len, labels)) + 7)))
    rows = math.ceil(len(labels) / columns)
    figure.set_figheight(3.3 + 0.19 * rows)
    figure.legend(handles, labels, loc="outside lower left", ncols=columns, frameon=False, fontsize=9)
