"""The least-squares slope of y on x within each seed: Σ(x − x̄)(y − ȳ)/Σ(x − x̄)²."""

from __future__ import annotations

import numpy as np

from flattrain.lab.statistics.interval import Values


def slopes(x: Values, y: Values) -> Values:
    """One slope per seed of x, y `(P, n)`; nan where a seed's x does not vary."""
    dx = x - x.mean(0)
    across = np.sum(dx**2, 0)
    along = np.sum(dx * (y - y.mean(0)), 0)
    return np.asarray(np.where(across > 0, along / np.where(across > 0, across, 1), np.nan))
