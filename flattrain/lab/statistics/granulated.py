"""The granulated Kendall coefficient Ψ (Jiang et al. 2020, arXiv 1912.02178).

For each hyperparameter axis i: ψ_i is the mean, over the settings of all other axes, of τ along axis i alone.
Ψ is the mean of the ψ_i. A measure that only follows one strong axis has a large τ and a small Ψ.
τ is τ-b, the same as theirs where nothing is tied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from flattrain.lab.statistics.interval import Values
from flattrain.lab.statistics.kendall import kendall

Setting = Mapping[str, str]


def granulated(x: Values, y: Values, settings: Sequence[Setting], axes: Sequence[str]) -> float:
    """Ψ of x and y `(P,)`; axes along which nothing varies do not count, and without any it is 0."""
    parts = [psi for axis in axes if (psi := along(x, y, settings, axis)) is not None]
    return float(np.mean(parts)) if parts else 0.0


def along(x: Values, y: Values, settings: Sequence[Setting], axis: str) -> float | None:
    """ψ of one axis: the mean τ over groups of at least two runs that differ in this axis alone."""
    taus = [kendall(x[group], y[group]) for group in groups(settings, axis)]
    return float(np.mean(taus)) if taus else None


def step(settings: Sequence[Setting], axes: Sequence[str]) -> float:
    """By how much Ψ changes at most when one pair of runs changes its order: Ψ takes values in such steps."""
    sizes = [[len(group) for group in groups(settings, axis)] for axis in axes]
    sizes = [of_axis for of_axis in sizes if of_axis]
    changes = [2 / (m * (m - 1) / 2) / len(of_axis) for of_axis in sizes for m in of_axis]
    return max(changes) / len(sizes) if sizes else 0.0


def groups(settings: Sequence[Setting], axis: str) -> list[list[int]]:
    """Runs that agree in all but one axis, where at least two do."""
    found: dict[tuple[tuple[str, str], ...], list[int]] = {}
    for k, setting in enumerate(settings):
        rest = tuple(sorted((a, v) for a, v in setting.items() if a != axis))
        if axis in setting:
            found.setdefault(rest, []).append(k)
    return [group for group in found.values() if len(group) > 1]
