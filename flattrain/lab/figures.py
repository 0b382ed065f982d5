"""The figures of a report: trajectories with seed bands, scatters, sweeps, and the forest of claims."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flattrain.lab.figures_spec import FigureSpec
from flattrain.lab.recipe import Recipe
from flattrain.lab.results import Table
from flattrain.lab.verdicts import Verdict

PALETTE = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#e69f00",
    "#6f4e9c",
    "#555555",
    "#8c2d04",
    "#000000",
)
MARKERS = "osD^vPX*<>"
VERDICT_COLOURS = {
    "supported": "#1a7f37",
    "refuted": "#cf222e",
    "undecided": "#9a6700",
    "void": "#8250df",
    "missing": "#8250df",
}
STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "svg.fonttype": "none",
    "svg.hashsalt": "flattrain",
    "figure.dpi": 100,
}
Point = tuple[tuple[str, str], ...]


def draw(spec: FigureSpec, recipe: Recipe, table: Table) -> tuple[str, Figure]:
    """The title and the figure."""
    painters: dict[str, Callable[[Axes, dict[str, Any], Table, list[tuple[str, str, str]]], None]] = {
        "trajectory": _trajectory,
        "scatter": _scatter,
        "sweep": _sweep,
    }
    settings = spec.settings
    every = list(dict.fromkeys(cell.arm for cell in recipe.cells))
    chosen = settings.get("arms") or every
    styled = [
        (arm, PALETTE[k % len(PALETTE)], MARKERS[k % len(MARKERS)])
        for k, arm in enumerate(every)
        if arm in chosen
    ]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
        painters[spec.kind](axes, settings, table, styled)
        logarithmic = str(settings.get("log", ""))
        if "x" in logarithmic:
            axes.set_xscale("log")
        if "y" in logarithmic:
            axes.set_yscale("log")
        if axes.get_legend_handles_labels()[0]:
            figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    title = settings.get("title") or _default_title(spec)
    return str(title), figure


def _default_title(spec: FigureSpec) -> str:
    s = spec.settings
    return {
        "trajectory": f"{_words(s.get('quantity'))} during training",
        "scatter": f"{_words(s.get('y'))} against {_words(s.get('x'))}",
        "sweep": f"{_words(s.get('quantity'))} against {s.get('over')}",
    }[spec.kind]


def _words(name: Any) -> str:
    return str(name).replace("_", " ")


def _trajectory(axes: Axes, settings: dict[str, Any], table: Table, arms: list[tuple[str, str, str]]) -> None:
    """Median over seeds, with a band from the smallest to the largest."""
    quantity = settings["quantity"]
    for arm, colour, _ in arms:
        for point in table.points(arm, settings.get("at")):
            series = table.series(quantity, arm, point)
            steps = [row.step for row in next(iter(series.values()), [])]
            if len(steps) < 2:
                continue
            values = np.array([[row.value for row in rows] for rows in series.values()])
            axes.plot(steps, np.median(values, 0), color=colour, label=_label(arm, point, settings))
            axes.fill_between(steps, values.min(0), values.max(0), color=colour, alpha=0.12, lw=0)
    axes.set_xscale("symlog", linthresh=10)
    axes.set_xlabel("training step")
    axes.set_ylabel(_words(quantity))


def _label(arm: str, point: Point, settings: dict[str, Any]) -> str:
    fixed = settings.get("at") or {}
    free = [f"{k} = {v}" for k, v in point if k not in fixed]
    return ", ".join([arm, *free])


def _scatter(axes: Axes, settings: dict[str, Any], table: Table, arms: list[tuple[str, str, str]]) -> None:
    """One mark per run, at its last step; fill grows with the grid's position."""
    for arm, colour, marker in arms:
        points = table.points(arm, settings.get("at"))
        for k, point in enumerate(points):
            x = table.final(settings["x"], arm, point)
            y = table.final(settings["y"], arm, point)
            seeds = sorted(x.keys() & y.keys())
            axes.scatter(
                [x[s] for s in seeds],
                [y[s] for s in seeds],
                s=28,
                marker=marker,
                edgecolors=colour,
                linewidths=0.8,
                facecolors=matplotlib.colors.to_rgba(colour, 0.15 + 0.7 * (k + 1) / len(points)),
                label=arm if k == len(points) - 1 else None,
            )
    axes.set_xlabel(f"{_words(settings['x'])} at the end")
    axes.set_ylabel(f"{_words(settings['y'])} at the end")


def _sweep(axes: Axes, settings: dict[str, Any], table: Table, arms: list[tuple[str, str, str]]) -> None:
    """Every seed as a mark, the medians joined."""
    over, quantity = settings["over"], settings["quantity"]
    for arm, colour, marker in arms:
        groups: list[tuple[float, list[float]]] = []
        for point in table.points(arm):
            where = dict(point).get(over)
            values = list(table.final(quantity, arm, point).values())
            if where is not None and values:
                groups.append((float(where), values))
        if len(groups) < 2:
            continue
        groups.sort()
        xs = [x for x, _ in groups]
        axes.plot(xs, [np.median(v) for _, v in groups], color=colour, label=arm)
        for x, values in groups:
            axes.plot([x] * len(values), values, marker, color=colour, ms=4, alpha=0.45, lw=0)
    axes.set_xlabel(over)
    axes.set_ylabel(_words(quantity))


def forest(verdicts: list[Verdict]) -> Figure:
    """Every claim's estimate and interval on its own scale: 0 and 1 are the ends of what is shown."""
    shown = [v for v in verdicts if v.interval is not None]
    with plt.rc_context({**STYLE, "axes.grid": False}):
        figure, axes = plt.subplots(figsize=(7.2, 0.42 * len(shown) + 0.5), layout="constrained")
        for k, v in enumerate(reversed(shown)):
            _claim_line(axes, k, v)
        axes.set_yticks(range(len(shown)), [v.claim.id for v in reversed(shown)])
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.6, len(shown) - 0.4)
        axes.set_xticks([])
        axes.spines[["bottom", "left"]].set_visible(False)
        axes.tick_params(left=False)
    return figure


def _claim_line(axes: Axes, k: int, v: Verdict) -> None:
    assert v.interval is not None
    found, region = v.interval, v.claim.predicts
    bounds = region.bound if region.kind == "between" else [region.bound]
    ends = [x for x in (found.low, found.high, found.estimate, *bounds) if math.isfinite(x)]
    low, high = min(ends), max(ends)
    pad = 0.15 * (high - low) or abs(high) * 0.1 or 1.0
    low, high = low - pad, high + pad

    def at(x: float) -> float:
        return float(np.clip((x - low) / (high - low), 0, 1))

    if region.kind == "between":
        span = at(bounds[0]), at(bounds[1])
    else:
        span = (0.0, at(bounds[0])) if region.kind in ("at_most", "below") else (at(bounds[0]), 1.0)
    axes.fill_betweenx([k - 0.32, k + 0.32], *span, color="#1a7f37", alpha=0.12, lw=0)
    colour = VERDICT_COLOURS[v.verdict]
    axes.plot([at(found.low), at(found.high)], [k, k], color=colour, lw=2, solid_capstyle="round")
    axes.plot(at(found.estimate), k, "o", color=colour, ms=6)
    axes.annotate(
        f"{found.estimate:.4g}",
        (at(found.estimate), k),
        xytext=(0, 6),
        textcoords="offset points",
        ha="center",
        fontsize=8,
        color=colour,
    )


def svg(figure: Figure) -> str:
    """The figure as inline SVG, without the XML preamble."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]
