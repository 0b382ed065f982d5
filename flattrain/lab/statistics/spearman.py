"""Spearman's ρ: Pearson's correlation of the ranks, ties sharing the mean of theirs."""

from __future__ import annotations

from scipy.stats import spearmanr

from flattrain.lab.statistics.interval import Values


def spearman(x: Values, y: Values) -> float:
    """ρ of two series; 0 if one of the two is constant, as τ-b is here."""
    if (x == x[0]).all() or (y == y[0]).all():
        return 0.0
    return float(spearmanr(x, y).statistic)
