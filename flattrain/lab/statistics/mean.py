"""The mean over seeds with Student's t interval x̄ ± t_{n−1} s/√n, for what each seed has by itself.

Values that can only be multiples of a step, such as rank correlations of a few runs, are corrected for
continuity: the ends move out by half a step of the mean, step/(2n).
"""

from __future__ import annotations

import math

import numpy as np

from flattrain.lab.statistics.interval import LEVEL, Interval, Values
from flattrain.lab.statistics.student import student


def mean(values: Values, level: float = LEVEL, step: float = 0.0) -> Interval:
    """The mean of the values `(n,)`; one value has no interval."""
    n, estimate = len(values), float(np.mean(values))
    if n < 2:
        return Interval(estimate, -np.inf, np.inf, n)
    half = student(level, n) * float(np.std(values, ddof=1)) / math.sqrt(n)
    half += step / (2 * n)
    return Interval(estimate, estimate - half, estimate + half, n)
