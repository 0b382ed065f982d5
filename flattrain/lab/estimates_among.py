"""Those runs of a sweep that meet a condition `among`, and the test of a claim about their median."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flattrain.lab.region import condition
from flattrain.lab.results import Table
from flattrain.lab.selection import Runs, Void, runs
from flattrain.lab.statistics.interval import Interval
from flattrain.lab.statistics.median import median


def looked_at(spec: Mapping[str, Any]) -> list[str]:
    """The quantities that `among` looks at."""
    among = spec.get("among") or {}
    return [name for name in (among.get("quantity"), among.get("divided_by")) if isinstance(name, str)]


def among(spec: Mapping[str, Any], seen: Runs) -> NDArray[np.bool_]:
    """Which runs `(P, n)` meet `among`, or all; a seed without any is a reason to void."""
    rule = spec.get("among")
    if rule is None:
        return np.ones(next(iter(seen.values.values())).shape, bool)
    scale = rule.get("divided_by", 1.0)
    values = seen.values[rule["quantity"]] / (seen.values[scale] if isinstance(scale, str) else scale)
    kept = np.vectorize(condition(rule).holds, otypes=[bool])(values)
    if not kept.any(0).all():
        raise Void(f"a seed has no run with {rule['quantity']} {condition(rule)}")
    return np.asarray(kept, bool)


def median_of_runs(spec: dict[str, Any], table: Table, level: float) -> Interval:
    """Median over the runs of each seed that meet `among`, or over all; the median of these over seeds."""
    seen = runs(table, spec, list(dict.fromkeys([spec["quantity"], *looked_at(spec)])))
    values, kept = seen.values[spec["quantity"]], among(spec, seen)
    return median(np.array([np.median(v[k]) for v, k in zip(values.T, kept.T, strict=True)]), level)
