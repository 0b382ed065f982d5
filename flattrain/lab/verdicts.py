"""From the table to a verdict for each claim. Torch is not needed: a verdict can be recomputed anywhere.

supported   the estimate lies where predicted, and the 95 % interval excludes the refuting region
refuted     the estimate lies in the refuting region, and the interval excludes the predicted one
undecided   neither
void        a condition of the claim does not hold, or a run diverged: the test says nothing
missing     the table has no rows for it
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flattrain.lab.claims import Claim, condition
from flattrain.lab.results import Table
from flattrain.lab.stats import Interval, Seeds, kendall, over_seeds, share

Values = NDArray[np.float64]
Point = tuple[tuple[str, str], ...]


class Verdict(NamedTuple):
    """The verdict on one claim with the numbers behind it."""

    claim: Claim
    verdict: str
    interval: Interval | None
    reason: str

    def as_json(self) -> dict[str, Any]:
        claim, found = self.claim, self.interval
        return {
            "verdict": self.verdict,
            "estimate": None if found is None else _finite(found.estimate),
            "interval": None if found is None else [_finite(found.low), _finite(found.high)],
            "level": 0.95,
            "n": 0 if found is None else found.n,
            "says": claim.says,
            "source": claim.source,
            "test": {claim.kind: claim.test},
            "predicts": str(claim.predicts),
            "refuted_if": str(claim.refuted_if or f"not {claim.predicts}"),
            "reason": self.reason,
        }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


class _NoRows(Exception):
    """A claim names runs that the table does not have."""


class _Void(Exception):
    """The test says nothing, for the reason given."""


def judge(claim: Claim, table: Table) -> Verdict:
    """Estimate, interval and verdict of one claim."""
    try:
        _check_conditions(claim, table)
        found = _TESTS[claim.kind](claim.test, table, claim.id)
    except _NoRows as missing:
        return Verdict(claim, "missing", None, str(missing))
    except _Void as void:
        return Verdict(claim, "void", None, str(void))
    verdict, reason = _decide(claim, found)
    return Verdict(claim, verdict, found, reason)


def _decide(claim: Claim, found: Interval) -> tuple[str, str]:
    if claim.predicts.holds(found.estimate):
        if not _meets(claim.refutes, found):
            return "supported", ""
        return (
            "undecided",
            "as predicted, but the interval reaches where the claim would be refuted",
        )
    if claim.refutes(found.estimate):
        if not _meets(claim.predicts.holds, found):
            return "refuted", ""
        return "undecided", "against the prediction, but the interval reaches what was predicted"
    return "undecided", "the estimate lies between what was predicted and what would refute it"


def _meets(inside: Callable[[float], bool], found: Interval) -> bool:
    """Whether the interval meets the region: regions are intervals, so ends, middle and bounds decide."""
    grid = np.linspace(found.low, found.high, 101).tolist() if math.isfinite(found.high - found.low) else []
    return any(inside(v) for v in [found.low, found.estimate, found.high, *grid])


def _check_conditions(claim: Claim, table: Table) -> None:
    for spec in claim.void_unless:
        values = _values(table, spec["quantity"], spec["arm"], spec.get("at"), spec)
        level, wanted = float(np.median(values)), condition(spec)
        if not wanted.holds(level):
            raise _Void(f"needs {spec['quantity']} of {spec['arm']} {wanted}, its median is {level:.4g}")


def _only_point(table: Table, arm: str, at: dict[str, Any] | None) -> Point:
    points = table.points(arm, at)
    if not points:
        raise _NoRows(f"no runs of arm {arm} at {at or 'any point'}")
    if len(points) > 1:
        raise _Void(f"arm {arm} has {len(points)} grid points; say which one with `at`")
    return points[0]


def _values(table: Table, quantity: str, arm: str, at: dict[str, Any] | None, spec: dict[str, Any]) -> Values:
    """One value per seed, in the order of the seeds: final, or at the first step where `when` holds."""
    point = _only_point(table, arm, at)
    when = spec.get("when")
    found = (
        table.final(quantity, arm, point)
        if when is None
        else table.matched(quantity, arm, point, when["quantity"], condition(when).bound)
    )
    if not found:
        raise _NoRows(f"no {quantity} for arm {arm}")
    bad = [str(seed) for seed, value in found.items() if not math.isfinite(value)]
    if bad and when is not None:
        raise _Void(f"seeds {', '.join(bad)} of arm {arm} never reach {when['quantity']} {condition(when)}")
    if bad:
        raise _Void(f"seeds {', '.join(bad)} of arm {arm} have no finite {quantity}")
    return np.array([found[s] for s in sorted(found)]) / spec.get("divided_by", 1.0)


def _one(spec: dict[str, Any], table: Table) -> Values:
    return _values(table, spec["quantity"], spec["arm"], spec.get("at"), spec)


def _pair(spec: dict[str, Any], table: Table) -> tuple[Values, Values]:
    other = _values(table, spec["quantity"], spec["versus"], spec.get("versus_at", spec.get("at")), spec)
    mine = _one(spec, table)
    if len(mine) != len(other):
        raise _Void(f"{len(mine)} seeds of {spec['arm']} against {len(other)} of {spec['versus']}")
    return mine, other


def _median_of(values: Values, name: str) -> Interval:
    return over_seeds(lambda seeds: float(np.median(values[seeds])), len(values), name)


def _median(spec: dict[str, Any], table: Table, name: str) -> Interval:
    return _median_of(_one(spec, table), name)


def _share(spec: dict[str, Any], table: Table, name: str) -> Interval:
    values = _one(spec, table)
    return share(sum(condition(spec).holds(v) for v in values.tolist()), len(values))


def _difference(spec: dict[str, Any], table: Table, name: str) -> Interval:
    mine, other = _pair(spec, table)
    return _median_of(mine - other, name)


def _ratio(spec: dict[str, Any], table: Table, name: str) -> Interval:
    mine, other = _pair(spec, table)
    if np.any(other == 0):
        raise _Void(f"{spec['quantity']} of {spec['versus']} is 0: there is no ratio")
    return _median_of(mine / other, name)


def _lower(spec: dict[str, Any], table: Table, name: str) -> Interval:
    mine, other = _pair(spec, table)
    return share(int(np.sum(mine < other)), len(mine))


def _spread(spec: dict[str, Any], table: Table, name: str) -> Interval:
    """Largest minus smallest median over the values of an axis, among the runs that meet `among`."""
    points = table.points(spec["arm"], spec.get("at"))
    if len(points) < 2:
        raise _NoRows(f"fewer than two values of {spec['over']} for arm {spec['arm']}")
    columns, kept = [], []
    for point in points:
        at = dict(point)
        columns.append(_values(table, spec["quantity"], spec["arm"], at, spec))
        among = spec.get("among")
        keep = np.ones(len(columns[-1]), bool)
        if among is not None:
            gate = _values(table, among["quantity"], spec["arm"], at, among)
            keep = np.array([condition(among).holds(v) for v in gate.tolist()])
        kept.append(keep)

    def statistic(seeds: Seeds) -> float:
        chosen = [c[seeds][k[seeds]] for c, k in zip(columns, kept, strict=True)]
        medians = [np.median(c) for c in chosen if len(c)]
        return float(max(medians) - min(medians)) if len(medians) > 1 else 0.0

    return over_seeds(statistic, len(columns[0]), name)


def _rank_correlation(spec: dict[str, Any], table: Table, name: str) -> Interval:
    """Kendall's τ-b over all runs of an arm; seeds are resampled with all their runs."""
    points = table.points(spec["arm"], spec.get("at"))
    if not points:
        raise _NoRows(f"no runs of arm {spec['arm']}")
    x, y = (
        np.stack([_values(table, spec[k], spec["arm"], dict(p), spec) for p in points]) for k in ("x", "y")
    )
    return over_seeds(lambda s: kendall(x[:, s].ravel(), y[:, s].ravel()), x.shape[1], name)


_TESTS: dict[str, Callable[[dict[str, Any], Table, str], Interval]] = {
    "median": _median,
    "share": _share,
    "difference": _difference,
    "ratio": _ratio,
    "lower": _lower,
    "spread": _spread,
    "rank_correlation": _rank_correlation,
}
