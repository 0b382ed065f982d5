"""The cluster bootstrap over seeds: draw n seeds with repetition, each with all its runs, and repeat.

The percentile interval of few seeds is too short, by √((n − 1)/n) and by taking normal quantiles for
Student's. Both are mended by its level: the tails are cut at Φ(−√(n/(n − 1)) t_{n−1, α/2}) where the plain
one cuts at α/2 (Hesterberg 2015, The American Statistician 69, "expanded percentile"). SciPy resamples.
"""

from __future__ import annotations

import zlib

import numpy as np
from scipy import stats

from flattrain.lab.statistics.interval import LEVEL, Interval
from flattrain.lab.statistics.seeds import Statistic
from flattrain.lab.statistics.student import student

RESAMPLES = 1999


def bootstrap(
    statistic: Statistic, n: int, name: str, level: float = LEVEL, resamples: int = RESAMPLES
) -> Interval:
    """The statistic of all seeds with its expanded percentile interval; `name` keys the generator."""
    everyone = np.arange(n)
    estimate = float(statistic(everyone))
    if n < 2:
        return Interval(estimate, -np.inf, np.inf, n)
    found = stats.bootstrap(
        (everyone,),
        lambda seeds: statistic(np.asarray(seeds)),
        n_resamples=resamples,
        confidence_level=_expanded(level, n),
        method="percentile",
        vectorized=False,
        rng=np.random.default_rng(zlib.crc32(name.encode())),
    ).confidence_interval
    return Interval(estimate, float(found.low), float(found.high), n)


def _expanded(level: float, n: int) -> float:
    """The percentile level whose interval holds `level` with n seeds."""
    quantile = student(level, n) * np.sqrt(n / (n - 1))
    return float(1 - 2 * stats.norm.cdf(-quantile))
