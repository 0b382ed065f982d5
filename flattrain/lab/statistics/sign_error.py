"""The sign error of a measure in each environment (Dziugaite et al. 2020, arXiv 2010.11924).

An environment is one axis and two of its values; its pairs are the runs of a seed that differ in this
alone. The error of a pair is (1 − sign Δx · sign Δy)/2: 0 if x orders the two as y does, 1 if the other way
round. A mean over all pairs hides the axis on which a measure fails, so the worst environment is looked at.

With `examples` m each pair has the weight max(0, 1 − 2 exp(−2 m (Δy/2)²))², the square of what Hoeffding's
inequality leaves for the order of two errors y that are measured on m examples.

Interval of an environment: Clopper–Pearson over seeds, each with its mean error. Of the worst of E
environments: from the largest low end at tails of α/(2E) to the largest high end at tails of α/2, which
covers at least the level.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from flattrain.lab.statistics.granulated import Setting, groups
from flattrain.lab.statistics.interval import LEVEL, Interval, Values
from flattrain.lab.statistics.share import share


class Environment(NamedTuple):
    """The mean error of each seed `(n,)` between two values of an axis; nan where no pair has weight."""

    axis: str
    values: tuple[str, str]
    errors: Values


def environments(
    x: Values, y: Values, settings: Sequence[Setting], axes: Sequence[str], examples: float | None = None
) -> list[Environment]:
    """Every environment of the runs, x and y `(P, n)`."""
    found: dict[tuple[str, tuple[str, str]], list[tuple[int, int]]] = {}
    for axis in axes:
        for group in groups(settings, axis):
            for k, i in enumerate(group):
                for j in group[k + 1 :]:
                    low, high = sorted((i, j), key=lambda r: settings[r][axis])
                    between = (settings[low][axis], settings[high][axis])
                    found.setdefault((axis, between), []).append((low, high))
    return [
        Environment(axis, between, _errors(x, y, np.array(pairs), examples))
        for (axis, between), pairs in found.items()
    ]


def _errors(x: Values, y: Values, pairs: Values, examples: float | None) -> Values:
    first, second = pairs.T
    gap = y[first] - y[second]
    wrong = (1 - np.sign(x[first] - x[second]) * np.sign(gap)) / 2
    weight = np.ones_like(gap)
    if examples is not None:
        weight = np.maximum(0, 1 - 2 * np.exp(-2 * examples * (gap / 2) ** 2)) ** 2
    total = weight.sum(0)
    return np.asarray(np.where(total > 0, (weight * wrong).sum(0) / np.where(total > 0, total, 1), np.nan))


def worst(found: Sequence[Environment], level: float = LEVEL) -> Interval:
    """The largest mean error over environments; those where no pair has weight are left out."""
    kept = [e.errors[np.isfinite(e.errors)] for e in found]
    kept = [errors for errors in kept if len(errors)]
    highs = [_over_seeds(errors, level) for errors in kept]
    lows = [_over_seeds(errors, 1 - (1 - level) / len(kept)) for errors in kept]
    top = max(highs, key=lambda i: i.estimate)
    return Interval(top.estimate, max(i.low for i in lows), max(i.high for i in highs), top.n)


def average(found: Sequence[Environment], level: float = LEVEL) -> Interval:
    """The mean error over environments, each of the same weight."""
    stacked = np.stack([e.errors for e in found])
    some = np.isfinite(stacked).any(0)
    return _over_seeds(np.nanmean(stacked[:, some], 0), level)


def _over_seeds(errors: Values, level: float) -> Interval:
    return share(float(errors.sum()), len(errors), level)
