"""A smooth statistic of all seeds together, with an interval from leaving out one seed at a time.

With θ the statistic of all seeds and θ₍ᵢ₎ without seed i, the standard error is √((n − 1)/n · Σ (θ₍ᵢ₎ −
θ̄₍·₎)²), and the interval θ ± t_{n−1} times it (Tukey 1958). A left-out seed takes all its runs with it.
Beside the percentile bootstrap it holds its level from five seeds on, and draws nothing at random. Not for
medians and other statistics with steps, where it is not consistent.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from flattrain.lab.statistics.interval import LEVEL, Interval, Values
from flattrain.lab.statistics.seeds import Seeds, Statistic
from flattrain.lab.statistics.student import student


def jackknife(statistic: Statistic, n: int, level: float = LEVEL) -> Interval:
    """θ ± t_{n−1} · standard error."""
    everyone = np.arange(n)
    left_out = np.array([statistic(np.delete(everyone, i)) for i in range(n) if n > 1])
    return _around(float(statistic(everyone)), left_out, n, level)


def jackknife_of_smallest(statistics: Callable[[Seeds], Values], n: int, level: float = LEVEL) -> Interval:
    """The smallest of several smooth statistics, `statistics(seeds)` (k,), free of bias of order 1/n.

    Its own interval is around nθ − (n − 1) θ̄₍·₎ (Quenouille 1949). Where another seed could have made another
    of them the smallest it is too short, and the intervals of each, around their own such centres, say by how
    much: the low end is the lowest of all, the high end the lowest of theirs if its own lies below that.
    """
    everyone = np.arange(n)
    estimates = statistics(everyone)
    if n < 2:
        return Interval(float(estimates.min()), -np.inf, np.inf, n)
    left_out = np.array([statistics(np.delete(everyone, i)) for i in range(n)])
    found = _unbiased(float(estimates.min()), left_out.min(1), n, level)
    each = [_unbiased(float(e), without, n, level) for e, without in zip(estimates, left_out.T, strict=True)]
    low, high = min(i.low for i in each), min(i.high for i in each)
    return Interval(found.estimate, min(found.low, low), max(found.high, high), n)


def _unbiased(estimate: float, left_out: Values, n: int, level: float) -> Interval:
    return _around(n * estimate - (n - 1) * float(np.mean(left_out)), left_out, n, level)


def _around(centre: float, left_out: Values, n: int, level: float) -> Interval:
    if n < 2:
        return Interval(centre, -np.inf, np.inf, n)
    spread = left_out - np.mean(left_out)
    error = float(np.sqrt((n - 1) / n * np.sum(spread**2)))
    half = student(level, n) * error
    return Interval(centre, centre - half, centre + half, n)
