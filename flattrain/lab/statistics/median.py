"""The median of n seeds, with an interval from order statistics: no shape of the distribution is assumed.

[x₍d₎, x₍n+1−d₎] holds the median with probability γ_d = 1 − 2 P(Bin(n, ½) < d). The levels γ_d are few, so
between the two depths around the wanted level the ends are interpolated: with γ_d ≥ level > γ_{d+1} and I =
(γ_d − level)/(γ_d − γ_{d+1}), the low end is (1 − λ) x₍d₎ + λ x₍d+1₎, λ = (n − d) I / (d + (n − 2d) I), the
high end its mirror image (Hettmansperger & Sheather 1986, Statistics & Probability Letters 4).

Few seeds: the extremes themselves reach only γ_1 = 1 − 2^(1−n), for n = 5 it is 93.75 %. Where that is
below the level, the interval is the smallest that holds the extremes and Student's t interval of the mean.
It covers γ_1 whatever the distribution, and the level where the values are normal.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from scipy import stats

from flattrain.lab.statistics.interval import LEVEL, Interval, Values
from flattrain.lab.statistics.student import student


def median(values: Values, level: float = LEVEL) -> Interval:
    """The median of the values `(n,)` and its interval; one value has none."""
    x, n = np.sort(values), len(values)
    estimate = float(np.median(x))
    if n < 2:
        return Interval(estimate, -np.inf, np.inf, n)
    reached = _reached(n)
    if reached[0] < level:
        half = student(level, n) * float(x.std(ddof=1)) / math.sqrt(n)
        centre = float(x.mean())
        return Interval(estimate, min(float(x[0]), centre - half), max(float(x[-1]), centre + half), n)
    d = int(np.sum(reached >= level))
    below = reached[d] if d < len(reached) else 0.0
    part = (reached[d - 1] - level) / (reached[d - 1] - below)
    weight = (n - d) * part / (d + (n - 2 * d) * part)
    low = (1 - weight) * x[d - 1] + weight * x[d]
    high = (1 - weight) * x[n - d] + weight * x[n - d - 1]
    return Interval(estimate, float(low), float(high), n)


@lru_cache(maxsize=256)
def _reached(n: int) -> Values:
    """γ_d for the depths d = 1 … ⌊n/2⌋."""
    depths = np.arange(1, n // 2 + 1)
    return np.asarray(1 - 2 * stats.binom.cdf(depths - 1, n, 0.5))
