"""The tests of a claim that look along each run: a late rise, and how two quantities move together."""

from __future__ import annotations

from typing import Any

import numpy as np

from flattrain.lab.results import Table
from flattrain.lab.selection import Void, along, by_seed, only_point
from flattrain.lab.statistics.interval import Interval, Values
from flattrain.lab.statistics.median import median
from flattrain.lab.statistics.pearson import pearson
from flattrain.lab.statistics.share import share
from flattrain.lab.statistics.slope import slopes
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
    each = [spearman(path[:, 0], path[:, 1]) for path in _paths(spec, table)]
    return median(np.array(each), level).within(-1, 1)


def line(spec: dict[str, Any], table: Table, level: float) -> Interval:
    """The least-squares slope of y on x over the milestones of each run, or Pearson's r; after logarithms."""
    each = []
    for path in _paths(spec, table):
        for k, key in enumerate("xy"):
            if key in spec.get("log", ""):
                if np.any(path[:, k] <= 0):
                    raise Void(f"{spec[key]} is not positive everywhere: it has no logarithm")
                path[:, k] = np.log(path[:, k])
        for k, key in enumerate("xy"):
            if np.ptp(path[:, k]) == 0:
                raise Void(f"{spec[key]} does not vary along a run: there is no line")
        x, y = path.T
        each.append(
            pearson(x, y) if spec["of"] == "correlation" else float(slopes(x[:, None], y[:, None])[0])
        )
    reach = 1.0 if spec["of"] == "correlation" else np.inf
    return median(np.array(each), level).within(-reach, reach)


def _paths(spec: dict[str, Any], table: Table) -> list[Values]:
    """x and y (M, 2) at the milestones of each seed's run that are compared."""
    run = spec["arm"], only_point(table, spec["arm"], spec.get("at"))
    found = along(table, (spec["x"], spec["y"]), run, spec.get("among"))
    for seed, path in found.items():
        if len(path) < FEWEST:
            raise Void(
                f"seed {seed} of arm {run[0]} has {len(path)} milestones to compare, {FEWEST} are needed"
            )
    return list(found.values())
