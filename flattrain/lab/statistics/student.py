"""Quantiles of Student's t distribution."""

from __future__ import annotations

from functools import lru_cache

from scipy import stats


@lru_cache(maxsize=4096)
def student(level: float, n: int) -> float:
    """t with n − 1 degrees of freedom such that ±t holds `level`."""
    return float(stats.t.ppf((1 + level) / 2, n - 1))
