"""Tests of claims about what an arm changes, over all grid points that it shares with `versus`.

Δ is quantity(arm) − quantity(versus), for each seed at each grid point; x is a quantity of `versus`.

sign_agreement      share of the changes with sign Δ = sign(x − threshold); a seed counts as the mean of its
                    points                                                            Clopper–Pearson
change_correlation  Kendall's τ-b of Δ and x over all points and seeds                jackknife over seeds
change_ratio        Σ |Δ of quantity| / Σ |Δ of reference|                            jackknife over seeds
"""

from __future__ import annotations

from typing import Any

import numpy as np

from flattrain.lab.results import Table
from flattrain.lab.selection import NoRows, Void, by_seed
from flattrain.lab.statistics.interval import Interval, Values
from flattrain.lab.statistics.jackknife import jackknife
from flattrain.lab.statistics.kendall import kendall
from flattrain.lab.statistics.share import share


def sign_agreement(spec: dict[str, Any], table: Table, level: float) -> Interval:
    """The share of agreeing signs; a change of 0, or an x at the threshold, agrees with nothing."""
    change, x = _changes(spec, table, spec["quantity"]), _of_versus(spec, table)
    agree = np.sign(change) * np.sign(x - spec.get("threshold", 0.0)) > 0
    return share(float(agree.mean(0).sum()), agree.shape[1], level)


def change_correlation(spec: dict[str, Any], table: Table, level: float) -> Interval:
    """τ-b of the change with x."""
    change, x = _changes(spec, table, spec["quantity"]), _of_versus(spec, table)
    found = jackknife(lambda s: kendall(x[:, s].ravel(), change[:, s].ravel()), x.shape[1], level)
    return found.within(-1, 1)


def change_ratio(spec: dict[str, Any], table: Table, level: float) -> Interval:
    """How large the changes of one quantity are beside those of another."""
    mine, other = (np.abs(_changes(spec, table, spec[key])) for key in ("quantity", "reference"))
    if not np.all(other.sum(0) > 0):
        raise Void(f"{spec['reference']} does not change in every seed: there is no ratio")
    return jackknife(lambda s: float(mine[:, s].sum() / other[:, s].sum()), mine.shape[1], level)


def _changes(spec: dict[str, Any], table: Table, quantity: str) -> Values:
    """Δ (P, n)."""
    return _values(spec, table, quantity, spec["arm"]) - _values(spec, table, quantity, spec["versus"])


def _of_versus(spec: dict[str, Any], table: Table) -> Values:
    return _values(spec, table, spec["x"], spec["versus"])


def _values(spec: dict[str, Any], table: Table, quantity: str, arm: str) -> Values:
    """One row per grid point that both arms have, one column per seed."""
    at = dict(spec.get("at") or {})
    there = set(table.points(spec["versus"], at))
    points = [point for point in table.points(spec["arm"], at) if point in there]
    if not points:
        raise NoRows(f"arms {spec['arm']} and {spec['versus']} share no grid point")
    found = [by_seed(table, quantity, arm, point, None) for point in points]
    if any(seeds.keys() != found[0].keys() for seeds in found):
        raise Void(f"arm {arm} does not have {quantity} for the same seeds everywhere")
    return np.array([[seeds[s] for s in sorted(seeds)] for seeds in found])
