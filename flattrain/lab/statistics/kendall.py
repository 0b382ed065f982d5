"""Kendall's τ-b: pooled, with a third variable held fixed, and within strata.

x, y and z are flat arrays over runs. SciPy's τ-b, to the bit; 0 where one of the two is constant and there is
no order to agree on.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from flattrain.lab.statistics.interval import Values

FEW = 300  # runs


def kendall(x: Values, y: Values) -> float:
    """τ-b = (concordant − discordant) / √(pairs untied in x · pairs untied in y)."""
    if len(x) < 2:
        return 0.0
    tau = _by_pairs(x, y) if len(x) <= FEW else stats.kendalltau(x, y).statistic
    return 0.0 if np.isnan(tau) else float(tau)


def _by_pairs(x: Values, y: Values) -> float:
    """All pairs at once: much faster than SciPy, which takes a millisecond to look at its input."""
    if np.isnan(x).any() or np.isnan(y).any():
        return np.nan
    a, b = (np.greater.outer(v, v).astype(np.int8) - np.less.outer(v, v) for v in (x, y))
    concordant_less_discordant = int(np.sum(a * b, dtype=np.int64)) // 2
    untied = [int(np.count_nonzero(v)) // 2 for v in (a, b)]
    if not all(untied):
        return np.nan
    tau = concordant_less_discordant / np.sqrt(untied[0]) / np.sqrt(untied[1])
    return float(np.clip(tau, -1, 1))


def partial_kendall(x: Values, y: Values, given: Sequence[Values]) -> float:
    """τ of x and y given others: −Q_xy/√(Q_xx Q_yy), Q the inverse of the matrix of all τ-b.

    With one z it is (τ_xy − τ_xz τ_yz)/√((1 − τ_xz²)(1 − τ_yz²)) (Kendall 1942).
    0 where the others leave nothing.
    """
    parts = [x, y, *given]
    matrix = np.array([[1.0 if a is b else kendall(a, b) for b in parts] for a in parts])
    inverse = np.linalg.pinv(matrix, hermitian=True)
    scale = inverse[0, 0] * inverse[1, 1]
    if scale <= 0 or np.linalg.matrix_rank(matrix, hermitian=True) < len(parts):
        return 0.0
    return float(np.clip(-inverse[0, 1] / np.sqrt(scale), -1, 1))


def stratified_kendall(x: Values, y: Values, strata: Sequence[object]) -> float:
    """Σ_s m_s τ_s / Σ_s m_s over strata s with at least two runs, m_s its number of pairs."""
    total, pairs = 0.0, 0
    for stratum in dict.fromkeys(strata):
        inside = np.array([s == stratum for s in strata])
        count = int(inside.sum())
        if count > 1:
            m = count * (count - 1) // 2
            total, pairs = total + m * kendall(x[inside], y[inside]), pairs + m
    return total / pairs if pairs else 0.0
