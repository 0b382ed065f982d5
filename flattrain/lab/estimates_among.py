"""The test of a claim about those runs of a sweep that meet a condition."""

from __future__ import annotations

from typing import Any

import numpy as np

from flattrain.lab.region import condition
from flattrain.lab.results import Table
from flattrain.lab.selection import Void, runs
from flattrain.lab.statistics.interval import Interval
from flattrain.lab.statistics.median import median


def median_of_runs(spec: dict[str, Any], table: Table, level: float) -> Interval:
    """Median over the runs of each seed that meet `among`, or over all; the median of these over seeds."""
    quantity, among = spec["quantity"], spec.get("among")
    named = [quantity, *([among["quantity"], among.get("divided_by", 1.0)] if among else [])]
    seen = runs(table, spec, [name for name in dict.fromkeys(named) if isinstance(name, str)])
    values, kept = seen.values[quantity], np.ones(seen.values[quantity].shape, bool)
    if among is not None:
        wanted, scale = condition(among), among.get("divided_by", 1.0)
        scale = seen.values[scale] if isinstance(scale, str) else scale
        kept = np.vectorize(wanted.holds, otypes=[bool])(seen.values[among["quantity"]] / scale)
        if not kept.any(0).all():
            raise Void(f"a seed has no run with {among['quantity']} {wanted}")
    return median(np.array([np.median(v[k]) for v, k in zip(values.T, kept.T, strict=True)]), level)
