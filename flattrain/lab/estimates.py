"""What each test of a claim computes: from the table to an estimate with its interval over seeds.

Which interval: order statistics for medians of seeds, Clopper–Pearson for shares, Student's t for what each
seed has by itself, the jackknife over seeds for a smooth statistic of all seeds together, and the bootstrap
over seeds for the spread of medians. Formulas: `lab.statistics`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from flattrain.lab.estimates_along import comovement, line, rise
from flattrain.lab.estimates_among import median_of_runs
from flattrain.lab.estimates_contrast import contrast
from flattrain.lab.estimates_events import fall, lag, nearer
from flattrain.lab.estimates_of_changes import change_correlation, change_ratio, sign_agreement
from flattrain.lab.estimates_of_correlations import correlation_change, correlation_slope
from flattrain.lab.estimates_of_means import mean_of_seeds, mean_ratio, mean_slope
from flattrain.lab.estimates_of_sweeps import (
    coverage,
    granulated_kendall,
    information,
    partial_rank_correlation,
    rank_correlation,
    sign_error,
    simpson,
    slope,
    stratified_rank_correlation,
)
from flattrain.lab.region import condition
from flattrain.lab.results import Table
from flattrain.lab.scope import ARM
from flattrain.lab.selection import NoRows, Void, pair, values
from flattrain.lab.statistics.bootstrap import bootstrap
from flattrain.lab.statistics.factorial import effect
from flattrain.lab.statistics.interval import Interval, Values
from flattrain.lab.statistics.mean import mean
from flattrain.lab.statistics.median import median
from flattrain.lab.statistics.seeds import Seeds
from flattrain.lab.statistics.share import share


def estimate(kind: str, spec: dict[str, Any], table: Table, name: str, level: float) -> Interval:
    """The test `kind` on the table; `name` keys the generator of what is resampled."""
    with np.errstate(
        over="ignore", invalid="ignore"
    ):  # values near the largest number: the ends are infinite
        found = _TESTS[kind](spec, table, level) if kind != "spread" else _spread(spec, table, name, level)
    if not math.isfinite(found.estimate):
        raise Void("the values are too large to compute with")
    return found._replace(
        low=-math.inf if math.isnan(found.low) else found.low,
        high=math.inf if math.isnan(found.high) else found.high,
    )


def _one(spec: dict[str, Any], table: Table) -> Values:
    return values(table, spec["quantity"], spec["arm"], spec.get("at"), spec)


def _median(spec: dict[str, Any], table: Table, level: float) -> Interval:
    return median(_one(spec, table), level)


def _share(spec: dict[str, Any], table: Table, level: float) -> Interval:
    found = _one(spec, table)
    return share(sum(condition(spec).holds(v) for v in found.tolist()), len(found), level)


def _difference(spec: dict[str, Any], table: Table, level: float) -> Interval:
    mine, other = pair(spec, table)
    return median(mine - other, level)


def _ratio(spec: dict[str, Any], table: Table, level: float) -> Interval:
    mine, other = pair(spec, table)
    if np.any(other == 0):
        raise Void(f"{spec['quantity']} of {spec['versus']} is 0: there is no ratio")
    return median(mine / other, level)


def _lower(spec: dict[str, Any], table: Table, level: float) -> Interval:
    mine, other = pair(spec, table)
    return share(int(np.sum(mine < other)), len(mine), level)


def _spread(spec: dict[str, Any], table: Table, name: str, level: float) -> Interval:
    """Largest minus smallest median over the values of an axis, among the runs that meet `among`."""
    points = table.points(spec["arm"], spec.get("at"))
    if len(points) < 2:
        raise NoRows(f"fewer than two values of {spec['over']} for arm {spec['arm']}")
    columns, kept = [], []
    for point in points:
        at = dict(point)
        columns.append(values(table, spec["quantity"], spec["arm"], at, spec))
        among = spec.get("among")
        keep = np.ones(len(columns[-1]), bool)
        if among is not None:
            gate = values(table, among["quantity"], spec["arm"], at, among)
            keep = np.array([condition(among).holds(v) for v in gate.tolist()])
        kept.append(keep)

    def statistic(seeds: Seeds) -> float:
        chosen = [c[seeds][k[seeds]] for c, k in zip(columns, kept, strict=True)]
        medians = [np.median(c) for c in chosen if len(c)]
        return float(max(medians) - min(medians)) if len(medians) > 1 else 0.0

    return bootstrap(statistic, len(columns[0]), name, level)


def _effect(spec: dict[str, Any], table: Table, level: float) -> Interval:
    if "cells" in spec:
        where = [[(arm, spec.get("at")) for arm in row] for row in spec["cells"]]
    else:
        ((rows, rs),), ((columns, cs),) = spec["rows"].items(), spec["columns"].items()
        where = [[_cell(spec, {rows: r, columns: c}) for c in cs] for r in rs]
    found = [[values(table, spec["quantity"], arm, at, spec) for arm, at in row] for row in where]
    if len({len(v) for row in found for v in row}) > 1:
        raise Void("the four cells do not have the same seeds")
    return mean(effect(np.array(found), spec["of"]), level)


def _cell(spec: dict[str, Any], levels: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    at = {**(spec.get("at") or {}), **{a: v for a, v in levels.items() if a != ARM}}
    return str(levels.get(ARM, spec.get("arm"))), at


_TESTS: dict[str, Callable[[dict[str, Any], Table, float], Interval]] = {
    "median": _median,
    "mean": mean_of_seeds,
    "mean_ratio": mean_ratio,
    "share": _share,
    "difference": _difference,
    "ratio": _ratio,
    "lower": _lower,
    "sign_agreement": sign_agreement,
    "change_correlation": change_correlation,
    "change_ratio": change_ratio,
    "rise": rise,
    "median_of_runs": median_of_runs,
    "rank_correlation": rank_correlation,
    "partial_rank_correlation": partial_rank_correlation,
    "stratified_rank_correlation": stratified_rank_correlation,
    "simpson": simpson,
    "correlation_change": correlation_change,
    "correlation_slope": correlation_slope,
    "granulated_kendall": granulated_kendall,
    "conditional_information": information,
    "sign_error": sign_error,
    "comovement": comovement,
    "line": line,
    "fall": fall,
    "lag": lag,
    "nearer": nearer,
    "slope": slope,
    "mean_slope": mean_slope,
    "effect": _effect,
    "contrast": contrast,
    "coverage": coverage,
}
