"""The tests of claims that look at many runs: how two quantities go together over a sweep."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from flattrain.lab.estimates_among import among, looked_at
from flattrain.lab.results import Table
from flattrain.lab.selection import Runs, Void, arms_of, cells, runs
from flattrain.lab.statistics.granulated import granulated, step
from flattrain.lab.statistics.information import conditional_information
from flattrain.lab.statistics.interval import Interval
from flattrain.lab.statistics.jackknife import jackknife, jackknife_of_smallest
from flattrain.lab.statistics.kendall import kendall, partial_kendall, stratified_kendall
from flattrain.lab.statistics.mean import mean
from flattrain.lab.statistics.seeds import Seeds
from flattrain.lab.statistics.share import share
from flattrain.lab.statistics.sign_error import average, environments, worst
from flattrain.lab.statistics.simpson import reversal
from flattrain.lab.statistics.slope import slopes

Z95 = 1.959963984540054


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


def rank_correlation(spec: dict[str, Any], table: Table, level: float) -> Interval:
    seen = _variables(spec, table)
    y, kept = seen.values[spec["y"]], among(spec, seen)

    def statistic(seeds: Seeds) -> float:
        own = kept[:, seeds]
        return _less(spec, lambda x: kendall(seen.values[x][:, seeds][own], y[:, seeds][own]))

    return _cut(spec, jackknife(statistic, seen.n, level))


def partial_rank_correlation(spec: dict[str, Any], table: Table, level: float) -> Interval:
    seen = _variables(spec, table)

    def statistic(seeds: Seeds) -> float:
        x, y, *given = (seen.values[v][:, seeds].ravel() for v in (spec["x"], spec["y"], *spec["given"]))
        return partial_kendall(x, y, given)

    return jackknife(statistic, seen.n, level).within(-1, 1)


def stratified_rank_correlation(spec: dict[str, Any], table: Table, level: float) -> Interval:
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


def simpson(spec: dict[str, Any], table: Table, level: float) -> Interval:
    return reversal(rank_correlation(spec, table, level), stratified_rank_correlation(spec, table, level))


def granulated_kendall(spec: dict[str, Any], table: Table, level: float) -> Interval:
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


def information(spec: dict[str, Any], table: Table, level: float) -> Interval:
    seen = _variables(spec, table)
    axes, x, y = _axes(spec, seen), seen.values[spec["x"]], seen.values[spec["y"]]
    found = jackknife_of_smallest(
        lambda s: conditional_information(x[:, s], y[:, s], seen.settings, axes), seen.n, level
    )
    return found.within(0, 1)


def sign_error(spec: dict[str, Any], table: Table, level: float) -> Interval:
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


def slope(spec: dict[str, Any], table: Table, level: float) -> Interval:
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


def coverage(spec: dict[str, Any], table: Table, level: float) -> Interval:
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
