"""How many seeds an undecided claim would need: intervals shrink as 1/√n, so n (width/distance)²."""

from __future__ import annotations

import math

from flattrain.lab.statistics.interval import Interval


def seeds_needed(found: Interval, below: float | None, above: float | None) -> int | None:
    """The seeds with which the interval would lie strictly between `below` and `above`, the estimate staying.

    None where no number does: the estimate lies on a bound, or there is no interval to go by.
    """
    factors = [1.0]
    for bound, end in ((below, found.low), (above, found.high)):
        if bound is None or not math.isfinite(bound):
            continue
        distance, width = abs(found.estimate - bound), abs(found.estimate - end)
        if distance == 0 or not math.isfinite(width):
            return None
        factors.append((width / distance) ** 2)
    return max(found.n + 1, _rounded_up(found.n * max(factors)))


def _rounded_up(count: float) -> int:
    """To two significant digits: more would be said than is known."""
    unit = 10 ** max(0, math.floor(math.log10(count)) - 1)
    return math.ceil(count / unit) * unit
