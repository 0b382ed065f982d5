"""The kinds of figures: each draws what it is asked for on its axes and says in words what is to be seen.

Runs whose value is not finite are left out of the drawing and counted in the words.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.ticker import NullLocator

from flattrain.lab.figure_style import DASHES, plain
from flattrain.lab.results import Table

Point = tuple[tuple[str, str], ...]
HUGE = 1e150  # beyond, the arithmetic of axes overflows


class Arm(NamedTuple):
    name: str
    colour: str
    marker: str


class Canvas(NamedTuple):
    """What a painter works on."""

    axes: Axes
    settings: dict[str, Any]
    table: Table
    arms: list[Arm]
    even: bool  # milestones at equal distances, not at equal ratios


def words(quantity: Any) -> str:
    """A quantity, or the difference of two, in words."""
    if isinstance(quantity, dict):
        return " − ".join(words(name) for name in quantity["difference"])
    return str(quantity).replace("_", " ")


def final_values(table: Table, quantity: Any, arm: str, point: Point) -> dict[int, float]:
    """seed -> the value at the last step, or the difference of two."""
    if not isinstance(quantity, dict):
        return table.final(quantity, arm, point)
    one, two = (table.final(name, arm, point) for name in quantity["difference"])
    return {seed: one[seed] - two[seed] for seed in one if seed in two}


def _along(table: Table, quantity: Any, arm: str, point: Point) -> dict[int, list[float]]:
    """step -> the finite values over seeds."""
    names = quantity["difference"] if isinstance(quantity, dict) else [quantity]
    first, *rest = (
        {(seed, row.step): row.value for seed, rows in table.series(name, arm, point).items() for row in rows}
        for name in names
    )
    out: dict[int, list[float]] = {}
    for (seed, step), value in sorted(first.items(), key=lambda item: item[0][1]):
        for other in rest:
            value -= other.get((seed, step), math.nan)
        out.setdefault(step, []).extend(_finite([value]))
    return {step: values for step, values in out.items() if values}


def _finite(values: Iterable[float]) -> list[float]:
    return [v for v in values if abs(v) < HUGE]  # a nan compares as false


def _label(arm: str, point: Point, settings: dict[str, Any]) -> str:
    fixed = settings.get("at") or {}
    free = [f"{k} = {v}" for k, v in point if k not in fixed]
    return plain(", ".join([arm, *free]), most=44)


def _trajectory(canvas: Canvas) -> list[str]:
    axes, settings, table, arms, even = canvas
    quantity, said, steps_seen = settings["quantity"], [], [0]
    for arm in arms:
        for k, point in enumerate(table.points(arm.name, settings.get("at"))):
            by_step = _along(table, quantity, arm.name, point)
            if len(by_step) < 2:
                continue
            steps, values = list(by_step), list(by_step.values())
            middle = [float(np.median(v)) for v in values]
            label = _label(arm.name, point, settings)
            axes.plot(
                steps, middle, color=arm.colour, label=label, ls=DASHES[k % len(DASHES)],
                marker=arm.marker, ms=3.5, markevery=0.25,
            )  # fmt: skip
            low, high = [min(v) for v in values], [max(v) for v in values]
            axes.fill_between(steps, low, high, color=arm.colour, alpha=0.13, lw=0)
            said.append(f"{label.strip()}: from {middle[0]:.3g} to {middle[-1]:.3g}.")
            steps_seen += steps
    if not even and max(steps_seen) > 100:
        axes.set_xscale("symlog", linthresh=10)
        axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("training step")
    axes.set_ylabel(plain(words(quantity)))
    return said


def _scatter(canvas: Canvas) -> list[str]:
    axes, settings, table, arms, _ = canvas
    said, left_out = [], 0
    for arm in arms:
        points = table.points(arm.name, settings.get("at"))
        label: str | None = plain(arm.name, most=44)
        for k, point in enumerate(points):
            x = final_values(table, settings["x"], arm.name, point)
            y = final_values(table, settings["y"], arm.name, point)
            pairs = [(x[s], y[s]) for s in sorted(x.keys() & y.keys())]
            kept = [(a, b) for a, b in pairs if len(_finite((a, b))) == 2]
            left_out += len(pairs) - len(kept)
            if not kept:
                continue
            face = to_rgba(arm.colour, 0.15 + 0.7 * (k + 1) / len(points))
            axes.scatter(
                [a for a, _ in kept],
                [b for _, b in kept], s=26, marker=arm.marker, edgecolors=arm.colour, linewidths=0.8,
                facecolors=face, label=label,
            )  # fmt: skip
            label = None
            a, b = np.median(kept, axis=0)
            said.append(f"{_label(arm.name, point, settings).strip()}: {b:.3g} at {a:.3g}.")
    axes.set_xlabel(plain(f"{words(settings['x'])} at the end"))
    axes.set_ylabel(plain(f"{words(settings['y'])} at the end"))
    return said + _left_out(left_out)


def _sweep(canvas: Canvas) -> list[str]:
    axes, settings, table, arms, _ = canvas
    over, quantity = settings["over"], settings["quantity"]
    groups: dict[Arm, dict[str, list[float]]] = {}
    left_out = 0
    for arm in arms:
        for point in table.points(arm.name):
            where = dict(point).get(over)
            values = list(final_values(table, quantity, arm.name, point).values())
            left_out += len(values) - len(_finite(values))
            if where is not None and _finite(values):
                groups.setdefault(arm, {}).setdefault(where, []).extend(_finite(values))
    places = _places({where for found in groups.values() for where in found})
    said = []
    for arm, found in groups.items():
        order = sorted(found, key=lambda where: places[where])
        middle = [float(np.median(found[where])) for where in order]
        label = plain(arm.name, most=44)
        axes.plot([places[w] for w in order], middle, color=arm.colour)
        axes.plot([], [], color=arm.colour, marker=arm.marker, ms=4, label=label)
        for where in order:
            marks = [places[where]] * len(found[where])
            axes.plot(marks, found[where], arm.marker, color=arm.colour, ms=4, alpha=0.5, lw=0)
        ends = ", ".join(f"{m:.3g} at {w}" for w, m in zip(order, middle, strict=True))
        said.append(f"{label.strip()}: {ends}.")
    if len(places) <= 8:
        axes.set_xticks(list(places.values()), [plain(where, most=12) for where in places])
    axes.set_xlabel(plain(over))
    axes.set_ylabel(plain(words(quantity)))
    return said + _left_out(left_out)


def _places(values: set[str]) -> dict[str, float]:
    """Where the values of an axis stand: as numbers if all are, else one after another."""
    try:
        return {v: float(v) for v in sorted(values, key=float)}
    except ValueError:
        return {v: float(k) for k, v in enumerate(sorted(values))}


def _final(canvas: Canvas) -> list[str]:
    axes, settings, table, arms, _ = canvas
    quantity, rows, left_out = settings["quantity"], [], 0
    for arm in arms:
        for point in table.points(arm.name, settings.get("at")):
            values = list(final_values(table, quantity, arm.name, point).values())
            left_out += len(values) - len(_finite(values))
            if _finite(values):
                rows.append((arm, _label(arm.name, point, settings), _finite(values)))
    for k, (arm, _, values) in enumerate(reversed(rows)):
        axes.plot(values, [k] * len(values), arm.marker, color=arm.colour, ms=5, alpha=0.55, lw=0)
        axes.plot([float(np.median(values))] * 2, [k - 0.32, k + 0.32], color=arm.colour, lw=2.2)
    axes.set_yticks(range(len(rows)), [plain(label, most=26) for _, label, _ in reversed(rows)])
    axes.figure.set_figheight(1.2 + 0.34 * max(len(rows), 3))  # type: ignore[union-attr]  # it may be a subfigure, never here
    axes.set_xlabel(plain(f"{words(quantity)} at the end"))
    said = [f"{label.strip()}: {float(np.median(values)):.3g}." for _, label, values in rows]
    return said + _left_out(left_out)


def _left_out(count: int) -> list[str]:
    return [f"{count} runs without a finite value are left out."] if count else []


PAINTERS: dict[str, tuple[Callable[[Canvas], list[str]], str]] = {
    "trajectory": (_trajectory, "Median over seeds; the band runs from the smallest to the largest."),
    "scatter": (_scatter, "One mark per run, at its last step; fuller marks are further along the grid."),
    "sweep": (_sweep, "One mark per run, at its last step; lines join the medians over seeds."),
    "final": (_final, "One mark per run, at its last step; the stroke is the median over seeds."),
}
