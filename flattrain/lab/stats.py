"""Estimates with 95 % intervals over seeds. SciPy does the statistics; generators are explicit.

A statistic is a function of which seeds are looked at (with repetitions), so resampling seeds keeps all
that belongs to a seed together: paired differences stay paired, runs of a sweep stay clustered.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

LEVEL = 0.95
RESAMPLES = 1999

Seeds = NDArray[np.int64]


class Interval(NamedTuple):
    """A point estimate with its interval, and the number of seeds behind it."""

    estimate: float
    low: float
    high: float
    n: int


def over_seeds(statistic: Callable[[Seeds], float], n: int, name: str) -> Interval:
    """The statistic of all seeds with a percentile bootstrap interval; `name` keys the generator."""
    everyone = np.arange(n)
    estimate = float(statistic(everyone))
    if n < 2:
        return Interval(estimate, -np.inf, np.inf, n)
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    found = stats.bootstrap(
        (everyone,),
        lambda seeds: statistic(np.asarray(seeds)),
        n_resamples=RESAMPLES,
        confidence_level=LEVEL,
        method="percentile",
        vectorized=False,
        rng=rng,
    ).confidence_interval
    return Interval(estimate, float(found.low), float(found.high), n)


def share(successes: int, n: int) -> Interval:
    """A proportion with its exact (Clopper–Pearson) interval."""
    found = stats.binomtest(successes, n).proportion_ci(LEVEL, method="exact")
    return Interval(successes / n, float(found.low), float(found.high), n)


def kendall(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Kendall's τ-b; 0 where one of the two is constant and there is no order to agree on."""
    tau = stats.kendalltau(x, y).statistic
    return 0.0 if np.isnan(tau) else float(tau)
