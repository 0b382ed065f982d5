"""The tests of a claim about when things happen along each run, and how far a quantity falls."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from flattrain.lab.events import steps_of
from flattrain.lab.results import Table
from flattrain.lab.selection import Void, by_seed, only_point
from flattrain.lab.statistics.interval import Interval
from flattrain.lab.statistics.median import median
from flattrain.lab.statistics.share import share


def lag(spec: dict[str, Any], table: Table, level: float) -> Interval:
    """log₂ of the step of `event` over that of `behind`, the median over seeds: 1 is twice as late.

    Step 0 counts as 1.
    """
    mine, other = _steps(spec, table, ("event", "behind"))
    late = [math.log2(max(mine[seed], 1) / max(other[seed], 1)) for seed in sorted(mine)]
    return median(np.array(late), level)


def nearer(spec: dict[str, Any], table: Table, level: float) -> Interval:
    """Share of seeds in which `event` is fewer steps away from `to` than from `than`."""
    event, to, than = _steps(spec, table, ("event", "to", "than"))
    closer = [abs(step - to[seed]) < abs(step - than[seed]) for seed, step in event.items()]
    return share(sum(closer), len(closer), level)


def fall(spec: dict[str, Any], table: Table, level: float) -> Interval:
    """The last value over the largest along the run, the median over seeds."""
    point = only_point(table, spec["arm"], spec.get("at"))
    last = by_seed(table, spec["quantity"], spec["arm"], point, None)
    largest = by_seed(table, spec["quantity"], spec["arm"], point, {"last": 1, "take": "largest"})
    if any(value <= 0 for value in largest.values()):
        raise Void(f"{spec['quantity']} of {spec['arm']} is nowhere positive: there is no share of it")
    return median(np.array([last[seed] / largest[seed] for seed in sorted(last)]), level)


def _steps(spec: dict[str, Any], table: Table, events: tuple[str, ...]) -> list[dict[int, int]]:
    point = only_point(table, spec["arm"], spec.get("at"))
    return [steps_of(table, spec[event], spec["arm"], point) for event in events]
