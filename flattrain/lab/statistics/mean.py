"""The mean over seeds with Student's t interval x̄ ± t_{n−1} s/√n, for what each seed has by itself."""

from __future__ import annotations

import numpy as np
from scipy import stats

from flattrain.lab.statistics.interval import LEVEL, Interval, Values


def mean(values: Values, level: float = LEVEL) -> Interval:
    """The mean of the values `(n,)`; one value has no interval."""
    n, estimate = len(values), float(np.mean(values))
    if n < 2:
        return Interval(estimate, -np.inf, np.inf, n)
    half = float(stats.t.ppf((1 + level) / 2, n - 1) * np.std(values, ddof=1) / np.sqrt(n))
    return Interval(estimate, estimate - half, estimate + half, n)
