"""A point estimate with its interval."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95

Values = NDArray[np.float64]


class Interval(NamedTuple):
    """An estimate, the ends of its interval, and the number of seeds behind it; `share`: a share of them."""

    estimate: float
    low: float
    high: float
    n: int
    share: bool = False

    def within(self, low: float, high: float) -> Interval:
        """The same, cut to the values that the statistic can take."""
        return self._replace(
            estimate=min(max(self.estimate, low), high),
            low=min(max(self.low, low), high),
            high=max(min(self.high, high), low),
        )
