"""Simpson's check: does an association keep its sign when one looks inside the strata?

With a pooled and a within-stratum coefficient a and b: −sign(ab) min(|a|, |b|) = (|a − b| − |a + b|)/2. It
is above 0 where the signs differ, and then the size of the weaker one; below 0 where they agree. It is
monotone in each, so its interval is its range over the corners of the two intervals; it excludes 0 exactly
if both exclude 0.
"""

from __future__ import annotations

from flattrain.lab.statistics.interval import Interval


def reversal(pooled: Interval, within: Interval) -> Interval:
    """The reversal of two coefficients with its interval."""
    corners = [_reversal(a, b) for a in (pooled.low, pooled.high) for b in (within.low, within.high)]
    return Interval(_reversal(pooled.estimate, within.estimate), min(corners), max(corners), pooled.n)


def _reversal(a: float, b: float) -> float:
    return (abs(a - b) - abs(a + b)) / 2
