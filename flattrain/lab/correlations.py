"""A figure of many correlations at once: every measure against one target, with intervals over seeds.

It is for looking around: nothing was predicted of these numbers, no error rate is held for so many of them,
and none of them is a verdict. Settings: `lab.correlations_spec`.
"""

from __future__ import annotations

from typing import Any

from matplotlib.lines import Line2D

from flattrain.lab.correlations_spec import ALL, test_of
from flattrain.lab.estimates import estimate
from flattrain.lab.figure_style import GRID, MARKERS, PALETTE, plain
from flattrain.lab.painters import Canvas, words
from flattrain.lab.selection import NoRows, Void
from flattrain.lab.statistics.interval import LEVEL

NOTE = (
    "Exploratory, no verdicts: nothing was predicted of these, and the 95 % intervals over seeds hold one by "
    "one, not together."
)


def paint_correlations(canvas: Canvas) -> list[str]:
    """One row per variable, one mark with its interval per group; strongest of the first group on top."""
    axes, settings, table = canvas.axes, canvas.settings, canvas.table
    kind, more = test_of(settings)
    groups = settings.get("groups") or {ALL: [arm.name for arm in canvas.arms]}
    found, left_out = {}, 0
    for group, arms in groups.items():
        for x in settings["x"]:
            spec = {**more, "x": x, "y": settings["y"], "arms": arms}
            try:
                found[group, x] = estimate(kind, spec, table, f"{group} {x}", LEVEL)
            except (Void, NoRows):
                left_out += 1
    first = next(iter(groups))
    order = sorted(
        settings["x"], key=lambda x: found[first, x].estimate if (first, x) in found else 0.0, reverse=True
    )
    step = 0.7 / max(len(groups), 1)
    for k, group in enumerate(groups):
        look = {"color": PALETTE[k % len(PALETTE)], "marker": MARKERS[k % len(MARKERS)]}
        for place, x in enumerate(order):
            if (group, x) not in found:
                continue
            at, one = len(order) - 1 - place + 0.35 - step * (k + 0.5), found[group, x]
            low, high = max(one.low, -2.0), min(one.high, 2.0)  # one seed has no interval
            axes.plot([low, high], [at, at], color=look["color"], lw=1.3, solid_capstyle="butt")
            axes.plot(one.estimate, at, look["marker"], color=look["color"], ms=4.5)
    axes.axvline(0, color=GRID, lw=1.2, zorder=0)
    axes.set_xlim(-1.02, 1.02)
    axes.set_ylim(-0.6, len(order) - 0.4)
    axes.set_yticks(range(len(order)), [plain(words(x), most=34) for x in reversed(order)], fontsize=8)
    axes.set_xlabel(plain(f"{words(kind)} with {words(settings['y'])}"))
    figure: Any = axes.figure  # it may be a subfigure, never here
    figure.set_figheight(1.2 + (0.11 + 0.09 * len(groups)) * len(order))
    if len(groups) > 1:
        keys = [
            Line2D([], [], color=PALETTE[k % len(PALETTE)], marker=MARKERS[k % len(MARKERS)], label=plain(g))
            for k, g in enumerate(groups)
        ]
        figure.legend(handles=keys, loc="outside lower left", ncols=4, frameon=False, fontsize=9)
    said = [
        f"{group}: "
        + ", ".join(f"{words(x)} {found[group, x].estimate:.2f}" for x in order if (group, x) in found)
        for group in groups
    ]
    return [f"{line}." for line in said] + ([f"{left_out} have no value."] if left_out else [])
