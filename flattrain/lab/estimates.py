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
from flattrain.lab.estimates_among import among, looked_at, median_of_runs
from flattrain.lab.estimates_contrast import contrast
from flattrain.lab.estimates_events import fall, lag, nearer
from flattrain.lab.estimates_of_changes import change_correlation, change_ratio, sign_agreement
from flattrain.lab.estimates_of_correlations import correlation_change, correlation_slope
from flattrain.lab.estimates_of_means import mean_of_seeds, mean_ratio, mean_slope
from flattrain.lab.region import condition
from flattrain.lab.results import Table
from flattrain.lab.scope import ARM
from flattrain.lab.selection import NoRows, Runs, Void, arms_of, cells, pair, runs, values
from flattrain.lab.statistics.bootstrap import bootstrap
from flattrain.lab.statistics.factorial import effect
from flattrain.lab.statistics.granulated import granulated, step
from flattrain.lab.statistics.information import conditional_information
from flattrain.lab.statistics.interval import Interval, Values
from flattrain.lab.statistics.jackknife import jackknife, jackknife_of_smallest
from flattrain.lab.statistics.kendall import kendall, partial_kendall, stratified_kendall
from flattrain.lab.statistics.mean import mean
from flattrain.lab.statistics.median import median
from flattrain.lab.statistics.seeds import Seeds
from flattrain.lab.statistics.share import share
from flattrain.lab.statistics.sign_error import average, environments, worst
from flattrain.lab.statistics.simpson import reversal
from flattrain.lab.statistics.slope import slopes

Z95 = 1.959963984540054


def estimate(kind: str, spec: dict[str, Any], table: Table, name: str, level: float) -> Interval:
    """The test `kind` on the table; `name` keys the generator of what is resampled."""
    with np.errstate(
        over="ignore", invalid="ignore"
    ):  # values near the largest number: the ends are infinite
        found = _TESTS[kind](spec, table, level) if kind != "spread" else _spread(spec, table, name, level)
    if not math.isfinite(found.estimate):
        raise Void("the values are too large to compute with")
    ends = (
        -math.inf if math.isnan(found.low) else found.low,
        math.inf if math.isnan(found.high) else found.high,
    )
    return Interval(found.estimate, *ends, found.n)


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


def _variables(spec: dict[str, Any], table: Table) -> Runs:
    names = [spec["x"], spec["y"], *spec.get("given", ()), spec.get("minus"), *looked_at(spec)]
    return runs(table, spec, [v for v in dict.fromkeys(names) if v is not None])


def _less(spec: dict[str, Any], coefficient: Callable[[str], float]) -> float:
    """The coefficient of x, less that of `minus` where one is named."""
    mine = coefficient(spec["x"])
    return mine - coefficient(spec["minus"]) if spec.get("minus") is not None else mine


def _cut(spec: dict[str, Any], found: Interval) -> Interval:
    reach = 2.0 if spec.get("minus") is not None else 1.0
    return found.within(-reach, reach)


def _rank_correlation(spec: dict[str, Any], table: Table, level: float) -> Interval:
    seen = _variables(spec, table)
    y, kept = seen.values[spec["y"]], among(spec, seen)

    def statistic(seeds: Seeds) -> float:
        own = kept[:, seeds]
        return _less(spec, lambda x: kendall(seen.values[x][:, seeds][own], y[:, seeds][own]))

    return _cut(spec, jackknife(statistic, seen.n, level))


def _partial(spec: dict[str, Any], table: Table, level: float) -> Interval:
    seen = _variables(spec, table)

    def statistic(seeds: Seeds) -> float:
        x, y, *given = (seen.values[v][:, seeds].ravel() for v in (spec["x"], spec["y"], *spec["given"]))
        return partial_kendall(x, y, given)

    return jackknife(statistic, seen.n, level).within(-1, 1)


def _stratified(spec: dict[str, Any], table: Table, level: float) -> Interval:
    seen = _variables(spec, table)
    y, strata, kept = seen.values[spec["y"]], _strata(spec, seen), among(spec, seen)

    def statistic(seeds: Seeds) -> float:
        own = kept[:, seeds]
        labels = np.repeat(strata, len(seeds))[own.ravel()].tolist()
        return _less(
            spec, lambda x: stratified_kendall(seen.values[x][:, seeds][own], y[:, seeds][own], labels)
        )

    return _cut(spec, jackknife(statistic, seen.n, level))


def _strata(spec: dict[str, Any], seen: Runs) -> list[int]:
    """The stratum of each cell: its values on the axes `by`."""
    keys = [tuple(s.get(axis, "") for axis in spec["by"]) for s in seen.settings]
    number = {key: k for k, key in enumerate(dict.fromkeys(keys))}
    return [number[key] for key in keys]


def _simpson(spec: dict[str, Any], table: Table, level: float) -> Interval:
    return reversal(_rank_correlation(spec, table, level), _stratified(spec, table, level))


def _granulated(spec: dict[str, Any], table: Table, level: float) -> Interval:
    seen = _variables(spec, table)
    axes, y = _axes(spec, seen), seen.values[spec["y"]]

    def of_seed(s: int) -> float:
        return _less(spec, lambda x: granulated(seen.values[x][:, s], y[:, s], seen.settings, axes))

    each = [of_seed(s) for s in range(seen.n)]
    coefficients = 2 if spec.get("minus") is not None else 1
    return _cut(spec, mean(np.array(each), level, coefficients * step(seen.settings, axes)))


def _axes(spec: dict[str, Any], seen: Runs) -> list[str]:
    axes = seen.axes(spec.get("axes"))
    if not axes:
        raise Void("none of the axes has two values among these runs")
    return axes


def _information(spec: dict[str, Any], table: Table, level: float) -> Interval:
    seen = _variables(spec, table)
    axes, x, y = _axes(spec, seen), seen.values[spec["x"]], seen.values[spec["y"]]
    found = jackknife_of_smallest(
        lambda s: conditional_information(x[:, s], y[:, s], seen.settings, axes), seen.n, level
    )
    return found.within(0, 1)


def _sign_error(spec: dict[str, Any], table: Table, level: float) -> Interval:
    seen = _variables(spec, table)
    found = environments(
        seen.values[spec["x"]],
        seen.values[spec["y"]],
        seen.settings,
        _axes(spec, seen),
        spec.get("examples"),
    )
    if not any(np.isfinite(e.errors).any() for e in found):
        raise Void("no two runs differ in one axis alone" if not found else "no pair of runs has any weight")
    return average(found, level) if spec.get("environments") == "mean" else worst(found, level)


def _slope(spec: dict[str, Any], table: Table, level: float) -> Interval:
    seen = _variables(spec, table)
    ends = {}
    for key in ("x", "y"):
        ends[key] = seen.values[spec[key]]
        if key in spec.get("log", ""):
            if np.any(ends[key] <= 0):
                raise Void(f"{spec[key]} is not positive everywhere: it has no logarithm")
            ends[key] = np.log(ends[key])
    found = slopes(ends["x"], ends["y"])
    if np.any(np.isnan(found)):
        raise Void(f"{spec['x']} does not vary among these runs: there is no slope")
    return mean(found, level)


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


def _coverage(spec: dict[str, Any], table: Table, level: float) -> Interval:
    """Share of the intervals value ± z · standard error that hold the reference."""
    name, z, reference = spec["quantity"], spec.get("z", Z95), spec["reference"]
    seen = runs(table, spec, [name, *([reference] if isinstance(reference, str) else [])])
    aim = (
        seen.values[reference] if isinstance(reference, str) else np.full(seen.values[name].shape, reference)
    )
    errors = np.array(
        [
            [rows[-1].standard_error for _, rows in sorted(table.series(name, arm, point).items())]
            for arm, point in cells(table, spec, arms_of(table, spec))
        ]
    )
    if not all(math.isfinite(e) for e in errors.ravel().tolist()):
        raise Void(f"{name} has no standard error: a single draw gives none")
    held = np.abs(seen.values[name] - aim) <= z * errors
    return share(float(held.mean(0).sum()), seen.n, level)


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
    "rank_correlation": _rank_correlation,
    "partial_rank_correlation": _partial,
    "stratified_rank_correlation": _stratified,
    "simpson": _simpson,
    "correlation_change": correlation_change,
    "correlation_slope": correlation_slope,
    "granulated_kendall": _granulated,
    "conditional_information": _information,
    "sign_error": _sign_error,
    "comovement": comovement,
    "line": line,
    "fall": fall,
    "lag": lag,
    "nearer": nearer,
    "slope": _slope,
    "mean_slope": mean_slope,
    "effect": _effect,
    "contrast": contrast,
    "coverage": _coverage,
}
