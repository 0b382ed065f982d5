"""A smooth statistic of all seeds together, with an interval from leaving out one seed at a time.

With θ the statistic of all seeds and θ₍ᵢ₎ without seed i, the standard error is √((n − 1)/n · Σ (θ₍ᵢ₎ −
θ̄₍·₎)²), and the interval θ ± t_{n−1} times it (Tukey 1958). A left-out seed takes all its runs with it.
Beside the percentile bootstrap it holds its level from five seeds on, and draws nothing at random. Not for
medians and other statistics with steps, where it is not consistent.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from flattrain.lab.statistics.interval import LEVEL, Interval
from flattrain.lab.statistics.seeds import Seeds, Statistic
from flattrain.lab.statistics.student import student


def jackknife(statistic: Statistic, n: int, level: float = LEVEL) -> Interval:
    """θ ± t_{n−1} · standard error."""
    estimate, left_out = _left_out(statistic, n)
    return _around(estimate, left_out, n, level)


def unbiased_jackknife(statistic: Statistic, n: int, level: float = LEVEL) -> Interval:
    """The same around nθ − (n − 1) θ̄₍·₎, which is free of bias of order 1/n (Quenouille 1949)."""
    estimate, left_out = _left_out(statistic, n)
    corrected = n * estimate - (n - 1) * float(np.mean(left_out)) if n > 1 else estimate
    return _around(corrected, left_out, n, level)


def _left_out(statistic: Callable[[Seeds], float], n: int) -> tuple[float, list[float]]:
    everyone = np.arange(n)
    return float(statistic(everyone)), [float(statistic(np.delete(everyone, i))) for i in range(n) if n > 1]


def _around(centre: float, left_out: list[float], n: int, level: float) -> Interval:
    if n < 2:
        return Interval(centre, -np.inf, np.inf, n)
    spread = np.asarray(left_out) - np.mean(left_out)
    error = float(np.sqrt((n - 1) / n * np.sum(spread**2)))
    half = student(level, n) * error
    return Interval(centre, centre - half, centre + half, n)
