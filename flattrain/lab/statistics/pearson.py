"""Pearson's product-moment correlation of flat arrays over runs; 0 where one of the two is constant."""

from __future__ import annotations

import numpy as np

from flattrain.lab.statistics.interval import Values


def pearson(x: Values, y: Values) -> float:
    """r = Σ(x − x̄)(y − ȳ) / √(Σ(x − x̄)² Σ(y − ȳ)²)."""
    dx, dy = x - np.mean(x), y - np.mean(y)
    size = np.linalg.norm(dx) * np.linalg.norm(dy)
    constant = np.ptp(x) == 0 or np.ptp(y) == 0
    return 0.0 if constant or size == 0 else float(dx @ dy / size)
