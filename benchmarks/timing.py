"""Methods take turns in random order, on processor time; a figure is the median of per-round ratios.

A ratio to the plain step of the same round does not feel that the machine is slower in one minute than in
the next, and random order spreads what one method leaves in the caches over all the others.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

WARM_UP = 2


class Ratio(NamedTuple):
    median: float
    low: float  # lower quartile
    high: float
    milliseconds: float  # median of a run


def interleave(
    baseline: Callable[[], object], works: Mapping[str, Callable[[], object]], repeats: int, seed: int = 0
) -> dict[str, Ratio]:
    """Ratios to the baseline, itself under the name "plain"."""
    turns = {"plain": baseline, **works}
    order, chance = list(turns), random.Random(seed)
    spent: dict[str, list[float]] = {name: [] for name in turns}
    for number in range(min(WARM_UP, repeats) + repeats):
        chance.shuffle(order)
        for name in order:
            began = time.process_time()
            turns[name]()
            if number >= min(WARM_UP, repeats):
                spent[name].append(time.process_time() - began)
    return {name: _ratio(own, spent["plain"]) for name, own in spent.items()}


def _ratio(own: list[float], plain: list[float]) -> Ratio:
    ratios = [a / b for a, b in zip(own, plain, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return Ratio(statistics.median(ratios), low, high, 1e3 * statistics.median(own))
