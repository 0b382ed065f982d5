"""Tests of claims about expectations: means over seeds, their ratio, and how they fall over an axis.

mean         the mean of a quantity over seeds                                        Student's t
mean_ratio   mean of `quantity` over mean of `reference`, of the same runs           jackknife over seeds
mean_slope   slope of the seeds' mean of y over x by least squares, `log` first       jackknife over seeds

Where a quantity is a mean over many seeds by its definition, as a generalisation gap is, single seeds may be
of either sign and their median is another number.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from flattrain.lab.results import Table
from flattrain.lab.selection import Void, runs, values
from flattrain.lab.statistics.interval import Interval, Values
from flattrain.lab.statistics.jackknife import jackknife
from flattrain.lab.statistics.mean import mean
from flattrain.lab.statistics.seeds import Seeds
from flattrain.lab.statistics.slope import slopes


def mean_of_seeds(spec: dict[str, Any], table: Table, level: float) -> Interval:
    """x̄ of one cell."""
    return mean(values(table, spec["quantity"], spec["arm"], spec.get("at"), spec), level)


def mean_ratio(spec: dict[str, Any], table: Table, level: float) -> Interval:
    """x̄/r̄ of one cell; `divided_by` divides the quantity alone."""
    plain = {key: value for key, value in spec.items() if key != "divided_by"}
    mine = values(table, spec["quantity"], spec["arm"], spec.get("at"), spec)
    other = values(table, spec["reference"], spec["arm"], spec.get("at"), plain)
    if len(mine) != len(other):
        raise Void(f"{spec['quantity']} and {spec['reference']} do not have the same seeds")
    if other.mean() == 0:
        raise Void(f"the mean of {spec['reference']} is 0: there is no ratio")
    return jackknife(lambda seeds: float(mine[seeds].mean() / other[seeds].mean()), len(mine), level)


def mean_slope(spec: dict[str, Any], table: Table, level: float) -> Interval:
    """The slope of ȳ over x̄ across the cells; void where a mean has no logarithm."""
    seen = runs(table, spec, [spec["x"], spec["y"]])
    logs = spec.get("log", "")

    def axis(key: str, seeds: Seeds) -> Values:
        found: Values = seen.values[spec[key]][:, seeds].mean(1, keepdims=True)
        if key not in logs:
            return found
        if np.any(found <= 0):
            raise Void(f"the mean of {spec[key]} is not positive everywhere: it has no logarithm")
        return np.asarray(np.log(found))

    if np.ptp(seen.values[spec["x"]].mean(1)) == 0:
        raise Void(f"{spec['x']} does not vary among these runs: there is no slope")
    return jackknife(lambda seeds: float(slopes(axis("x", seeds), axis("y", seeds))[0]), seen.n, level)
