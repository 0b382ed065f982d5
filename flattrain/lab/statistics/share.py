"""A proportion with its exact (Clopper–Pearson) interval, which covers at least the level, whatever the
truth.

`successes` may be a fraction: a sum of n seeds' means in [0, 1]. Its variance is at most that of n coins,
so the interval of the coins, with Beta quantiles at the fractional count, is not too short.
"""

from __future__ import annotations

from functools import lru_cache

from scipy import stats

from flattrain.lab.statistics.interval import LEVEL, Interval


@lru_cache(maxsize=4096)
def share(successes: float, n: int, level: float = LEVEL) -> Interval:
    """successes/n, with the ends Beta⁻¹(α/2; s, n − s + 1) and Beta⁻¹(1 − α/2; s + 1, n − s)."""
    tail = (1 - level) / 2
    low = 0.0 if successes <= 0 else float(stats.beta.ppf(tail, successes, n - successes + 1))
    high = 1.0 if successes >= n else float(stats.beta.ppf(1 - tail, successes + 1, n - successes))
    return Interval(successes / n, low, high, n, share=True)
