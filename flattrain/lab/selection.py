"""From the table to arrays: one value per seed of one cell, or of many cells with the seeds they share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from flattrain.lab.matching import matched, when_text
from flattrain.lab.region import condition
from flattrain.lab.results import Table
from flattrain.lab.scope import ARM
from flattrain.lab.statistics.interval import Values

Point = tuple[tuple[str, str], ...]
At = Mapping[str, Any] | None


class NoRows(Exception):
    """A claim names runs that the table does not have."""


class Void(Exception):
    """The test says nothing, for the reason given."""


class Runs(NamedTuple):
    """Cells: `settings` holds the arm and point of each, `values` the variables as arrays `(P, n)`."""

    settings: tuple[dict[str, str], ...]
    values: dict[str, Values]
    n: int

    def axes(self, chosen: Sequence[str] | None) -> list[str]:
        """The axes that were chosen, or all, of which more than one value is there."""
        known = list(dict.fromkeys(axis for s in self.settings for axis in s))
        return [a for a in (chosen or known) if len({s[a] for s in self.settings if a in s}) > 1]


def only_point(table: Table, arm: str, at: At) -> Point:
    """The one grid point of the arm at `at`."""
    points = table.points(arm, dict(at or {}))
    if not points:
        raise NoRows(f"no runs of arm {arm} at {at or 'any point'}")
    if len(points) > 1:
        raise Void(f"arm {arm} has {len(points)} grid points; say which one with `at`")
    return points[0]


def values(table: Table, quantity: str, arm: str, at: At, spec: Mapping[str, Any]) -> Values:
    """One value per seed, in the order of the seeds: final, or where `when` says."""
    found = _over(table, quantity, (arm, only_point(table, arm, at)), spec)
    return np.array([found[s] for s in sorted(found)])


def _over(
    table: Table,
    quantity: str,
    run: tuple[str, Point],
    spec: Mapping[str, Any],
    rivals: Sequence[tuple[str, Point]] = (),
) -> dict[int, float]:
    """`by_seed`, divided by a number or by another quantity of the same run."""
    found = by_seed(table, quantity, *run, spec.get("when"), rivals)
    divisor = spec.get("divided_by", 1.0)
    if not isinstance(divisor, str):
        return {seed: value / divisor for seed, value in found.items()}
    below = by_seed(table, divisor, *run, spec.get("when"), rivals)
    if any(value == 0 for value in below.values()):
        raise Void(f"{divisor} of {run[0]} is 0: there is no ratio")
    return {seed: value / below[seed] for seed, value in found.items()}


def by_seed(
    table: Table,
    quantity: str,
    arm: str,
    point: Point,
    when: Mapping[str, Any] | None,
    rivals: Sequence[tuple[str, Point]] = (),
) -> dict[int, float]:
    """seed -> value; a run that has none is a reason to void. Rivals share a lowest common level with it."""
    if when is None:
        found = table.final(quantity, arm, point)
    else:
        found = matched(table, quantity, (arm, point), when, rivals)
    if not found:
        raise NoRows(f"no {quantity} for arm {arm}")
    bad = [str(seed) for seed, value in sorted(found.items()) if not math.isfinite(value)]
    if bad and when is not None:
        said = "have no finite" if "last" in when else "never reach"
        raise Void(f"seeds {', '.join(bad)} of arm {arm} {said} {when_text(when)}")
    if bad:
        raise Void(f"seeds {', '.join(bad)} of arm {arm} have no finite {quantity}")
    return found


def pair(spec: Mapping[str, Any], table: Table) -> tuple[Values, Values]:
    """The values of `arm` and of `versus`, seed by seed."""
    one = only_point(table, spec["arm"], spec.get("at"))
    two = only_point(table, spec["versus"], spec.get("versus_at", spec.get("at")))
    both = ((spec["arm"], one), (spec["versus"], two))
    mine, other = (_over(table, spec["quantity"], run, spec, both) for run in both)
    if mine.keys() != other.keys():
        raise Void(f"arms {spec['arm']} and {spec['versus']} do not have the same seeds: there are no pairs")
    return np.array([mine[s] for s in sorted(mine)]), np.array([other[s] for s in sorted(mine)])


def cells(table: Table, spec: Mapping[str, Any], arms: Sequence[str]) -> list[tuple[str, Point]]:
    """Every cell of the arms that agrees with `at`."""
    found = [(arm, p) for arm in arms for p in table.points(arm, dict(spec.get("at") or {}))]
    if not found:
        raise NoRows(f"no runs of {', '.join(arms) or 'any arm'} at {spec.get('at') or 'any point'}")
    return found


def arms_of(table: Table, spec: Mapping[str, Any]) -> list[str]:
    """`arm`, or `arms`, or all arms of the table."""
    if "arm" in spec:
        return [spec["arm"]]
    return list(spec.get("arms") or dict.fromkeys(row.arm for row in table.rows))


def runs(table: Table, spec: Mapping[str, Any], variables: Sequence[str]) -> Runs:
    """The cells that the test names, each with every variable: a quantity, or an axis with numbers."""
    chosen = cells(table, spec, arms_of(table, spec))
    measured = {row.quantity for row in table.rows}
    columns: dict[str, list[Values]] = {v: [] for v in variables}
    seeds: list[int] = sorted({row.seed for row in table.rows})
    for arm, point in chosen:
        for variable in columns:
            if variable in measured:
                found = by_seed(table, variable, arm, point, spec.get("when"))
                if sorted(found) != seeds:
                    raise Void(f"arm {arm} does not have {variable} for every seed of the table")
                columns[variable].append(np.array([found[s] for s in seeds]))
            else:
                columns[variable].append(np.full(len(seeds), _number(dict(point), variable, arm)))
    settings = tuple({ARM: arm, **dict(point)} for arm, point in chosen)
    return Runs(settings, {v: np.stack(c) for v, c in columns.items()}, len(seeds))


def along(
    table: Table, quantities: Sequence[str], run: tuple[str, Point], among: Mapping[str, Any] | None
) -> dict[int, Values]:
    """seed -> the quantities (M, k) at the M milestones of a run that have them all and meet `among`."""
    series = [table.series(q, *run) for q in quantities]
    for quantity, found in zip(quantities, series, strict=True):
        if not found:
            raise NoRows(f"no {quantity} for arm {run[0]}")
    gate = table.series(among["quantity"], *run) if among is not None else {}
    out = {}
    for seed in sorted(series[0]):
        columns = [{r.step: r.value for r in s.get(seed, []) if math.isfinite(r.value)} for s in series]
        steps = set.intersection(*map(set, columns))
        if among is not None:
            scale, wanted = among.get("divided_by", 1.0), condition(among)
            steps &= {r.step for r in gate.get(seed, []) if wanted.holds(r.value / scale)}
        out[seed] = np.array([[c[step] for c in columns] for step in sorted(steps)]).reshape(-1, len(columns))
    return out


def _number(point: Mapping[str, str], axis: str, arm: str) -> float:
    if axis not in point:
        raise NoRows(f"no {axis} for arm {arm}")
    return float(point[axis])
