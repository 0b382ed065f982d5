"""The forest of claims: estimate and interval against where they were predicted, and where refuted.

Claims measure different things, so each has a scale of its own: only what lies left or right of what
compares.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from flattrain.lab.figure_style import INK, PALETTE, PAPER, WIDTH, plain, styled
from flattrain.lab.figures import Drawn
from flattrain.lab.summary import interval_text, number
from flattrain.lab.verdicts import Verdict

PREDICTED, REFUTING = PALETTE[0], PALETTE[1]
MARKS = {"supported": "o", "refuted": "X", "undecided": "D"}
NOTE = (
    "Every claim on its own scale: estimate (dot: supported, cross: refuted, diamond: undecided) and "
    "interval. Blue: where it was predicted. Hatched: where the claim is refuted."
)


def forest(verdicts: list[Verdict]) -> Drawn | None:
    """One line per claim that has an interval; None if there is none."""
    shown = [v for v in verdicts if v.interval is not None and math.isfinite(v.interval.estimate)]
    if not shown:
        return None
    with styled():
        figure, axes = plt.subplots(figsize=(WIDTH, 0.6 + 0.47 * len(shown)), layout="constrained")
        for k, v in enumerate(reversed(shown)):
            _line(axes, k, v)
        axes.set_xlim(0, 1)
        axes.set_ylim(-0.45, len(shown) - 0.35)
        axes.set_axis_off()
        keys = [
            Patch(facecolor=PREDICTED, alpha=0.3, label="predicted"),
            Patch(facecolor="none", edgecolor=REFUTING, hatch="////", lw=0.4, label="refuting"),
        ]
        figure.legend(handles=keys, loc="outside lower left", ncols=2, frameon=False, fontsize=9)
    said = [f"{v.claim.id}: {v.verdict}, {_numbers(v)}, predicted {v.claim.predicts}." for v in shown]
    return Drawn("Claims against their predictions", NOTE, " ".join(said), figure)


def _numbers(v: Verdict) -> str:
    assert v.interval is not None
    return f"{number(v.interval.estimate)} {interval_text(v)}"


def _line(axes: Axes, k: int, v: Verdict) -> None:
    assert v.interval is not None
    found = v.interval
    low, high = _limits(v)

    def at(x: float) -> float:
        return float(np.clip((x - low) / (high - low), 0, 1))

    grid = np.linspace(low, high, 601)
    _shade(axes, k, v.claim.predicts.holds, grid, {"facecolor": PREDICTED, "alpha": 0.3, "lw": 0})
    hatched = {"facecolor": "none", "edgecolor": REFUTING, "hatch": "////", "lw": 0.4}
    _shade(axes, k, v.claim.refutes, grid, hatched)
    axes.plot([at(found.low), at(found.high)], [k, k], color=INK, lw=2, solid_capstyle="butt")
    axes.plot(at(found.estimate), k, MARKS.get(v.verdict, "o"), color=INK, ms=9, mec=PAPER, mew=0.8)
    axes.text(0, k + 0.25, plain(v.claim.id, most=34), fontsize=9, va="bottom", fontweight="bold")
    axes.text(1, k + 0.25, _numbers(v), fontsize=9, va="bottom", ha="right")


def _limits(v: Verdict) -> tuple[float, float]:
    """A scale that holds the interval and the bounds of both regions."""
    assert v.interval is not None
    ends = [v.interval.low, v.interval.high, v.interval.estimate]
    for region in (v.claim.predicts, v.claim.refuted_if):
        if region is not None:
            ends += region.bound if region.kind == "between" else [region.bound]
    finite = [x for x in ends if math.isfinite(x)]
    low, high = min(finite), max(finite)
    pad = 0.12 * (high - low) or 0.1 * abs(high) or 1.0
    return low - pad, high + pad


def _shade(axes: Axes, k: int, inside: Callable[[float], bool], grid: Any, look: dict[str, Any]) -> None:
    """The stretches of the grid that lie in a region."""
    hits = np.array([inside(float(x)) for x in grid])
    edges = np.flatnonzero(np.diff(np.concatenate([[0], hits.astype(int), [0]])))
    for first, last in zip(edges[::2], edges[1::2], strict=True):
        span = first / (len(grid) - 1), (last - 1) / (len(grid) - 1)
        axes.fill_betweenx([k - 0.2, k + 0.2], *span, **look)
