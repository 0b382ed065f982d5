"""The tests of a claim that look along each run: a late rise, and two quantities that move together."""

from __future__ import annotations

from typing import Any

import numpy as np

from flattrain.lab.results import Table
from flattrain.lab.selection import Void, along, by_seed, only_point
from flattrain.lab.statistics.interval import Interval
from flattrain.lab.statistics.median import median
from flattrain.lab.statistics.share import share
from flattrain.lab.statistics.spearman import spearman

FEWEST = 5  # milestones, below which a rank correlation along a run says nothing


def rise(spec: dict[str, Any], table: Table, level: float) -> Interval:
    """Share of seeds whose smallest value comes early and whose last lies so much above it."""
    point = only_point(table, spec["arm"], spec.get("at"))
    by_seed(table, spec["quantity"], spec["arm"], point, None)
    held = []
    for rows in table.series(spec["quantity"], spec["arm"], point).values():
        least, last = min(rows, key=lambda row: row.value), rows[-1]
        early = least.step <= spec["before"] * last.step
        held.append(early and last.value - least.value >= spec["at_least"])
    return share(sum(held), len(held), level)


def comovement(spec: dict[str, Any], table: Table, level: float) -> Interval:
    """Spearman's ρ of x and y over the milestones of each run, or those that meet `among`."""
    run = spec["arm"], only_point(table, spec["arm"], spec.get("at"))
    among = spec.get("among")
    each = []
    for seed, path in along(table, (spec["x"], spec["y"]), run, among).items():
        if len(path) < FEWEST:
            raise Void(
                f"seed {seed} of arm {run[0]} has {len(path)} milestones to compare, {FEWEST} are needed"
            )
        each.append(spearman(path[:, 0], path[:, 1]))
    return median(np.array(each), level).within(-1, 1)
