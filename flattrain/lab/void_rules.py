"""What makes a claim void: conditions under which its test says nothing, checked and judged.

{quantity, arm, at, <region>}
    the median of a quantity lies in a region: trained, no dead units, at the edge of stability, …
{matched: {quantity, within, floor, arms, at}}
    the medians of all cells compared agree: largest minus smallest is at most `within` times the larger
{stationary: {quantity, within, last, floor, arms, at}}
    over the last fraction of the steps the median change is at most `within` times the value

`arms` and `at` are those of the test unless given. Values smaller than `floor` in size count as `floor`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from flattrain.lab.claim_tests import check_condition, check_keys, check_number
from flattrain.lab.region import condition
from flattrain.lab.results import Table
from flattrain.lab.scope import Scope
from flattrain.lab.selection import NoRows, Point, Void, arms_of, by_seed, cells, only_point, values
from flattrain.ranges import Refused

LAST = 0.2
_KEYS = {
    "matched": ("quantity", "within", "floor", "arms", "at"),
    "stationary": ("quantity", "within", "last", "floor", "arms", "at"),
}


def check_rule(spec: Any, where: str, scope: Scope) -> None:
    """Refuse what is not one of the three forms."""
    kind = next((k for k in _KEYS if isinstance(spec, dict) and k in spec), None)
    if kind is None:
        check_condition(spec, where, scope)
        return
    if len(spec) > 1:
        raise Refused(f"{where}: {kind} stands alone; make a second entry of the rest")
    where, rule = f"{where}.{kind}", spec[kind]
    check_keys(rule, _KEYS[kind], where)
    scope.need_quantity(rule.get("quantity"), f"{where}.quantity")
    if "within" not in rule:
        raise Refused(f"{where}: within is missing")
    for key in ("within", "floor"):
        check_number(rule, key, "NonNegative", where)
    check_number(rule, "last", "Fraction", where)
    if rule.get("arms") is not None:
        scope.need_arms(rule["arms"], f"{where}.arms")
    scope.need_point(rule.get("at"), f"{where}.at")


def apply_rules(rules: tuple[dict[str, Any], ...], test: Mapping[str, Any], table: Table) -> None:
    """Raise `Void` with the reason if one of the rules does not hold."""
    for spec in rules:
        if "matched" in spec:
            _matched(spec["matched"], test, table)
        elif "stationary" in spec:
            _stationary(spec["stationary"], test, table)
        else:
            _condition(spec, table)


def _condition(spec: dict[str, Any], table: Table) -> None:
    found = values(table, spec["quantity"], spec["arm"], spec.get("at"), spec)
    level, wanted = float(np.median(found)), condition(spec)
    if not wanted.holds(level):
        raise Void(f"needs {spec['quantity']} of {spec['arm']} {wanted}, its median is {level:.4g}")


def _matched(rule: dict[str, Any], test: Mapping[str, Any], table: Table) -> None:
    quantity, floor = rule["quantity"], rule.get("floor", 0.0)
    compared = _compared(rule, test, table)
    medians = {
        cell: float(np.median(list(by_seed(table, quantity, *cell, test.get("when"), compared).values())))
        for cell in compared
    }
    levels = [_floored(m, floor) for m in medians.values()]
    largest = max(abs(v) for v in levels)
    if max(levels) - min(levels) > rule["within"] * largest:
        low, high = min(medians, key=medians.__getitem__), max(medians, key=medians.__getitem__)
        raise Void(
            f"not matched on {quantity}: its median is {medians[low]:.4g} for {_name(low)} and "
            f"{medians[high]:.4g} for {_name(high)}, apart by more than {rule['within']:.4g} of the larger"
        )


def _stationary(rule: dict[str, Any], test: Mapping[str, Any], table: Table) -> None:
    quantity, floor, last = rule["quantity"], rule.get("floor", 0.0), rule.get("last", LAST)
    for cell in _compared(rule, test, table):
        by_seed(table, quantity, *cell, None)
        changes = []
        for rows in table.series(quantity, *cell).values():
            before = [r.value for r in rows if r.step <= (1 - last) * rows[-1].step and r is not rows[-1]]
            if not before:
                raise Void(f"{quantity} of {_name(cell)} has no earlier milestone to tell if it still moves")
            then, now = _floored(before[-1], floor), _floored(rows[-1].value, floor)
            size = max(abs(then), abs(now))
            changes.append(abs(now - then) / size if size else 0.0)
        change = float(np.median(changes))
        if not change <= rule["within"]:
            raise Void(
                f"not stationary: {quantity} of {_name(cell)} still changes by {change:.4g} of its size over "
                f"the last {last:.4g} of the steps, more than {rule['within']:.4g}"
            )


def _compared(rule: dict[str, Any], test: Mapping[str, Any], table: Table) -> list[tuple[str, Point]]:
    """The cells that the rule names, else those that the test compares."""
    if "arms" in rule or "at" in rule:
        arms = rule.get("arms") or _arms(test, table)
        return cells(table, {"at": rule.get("at", test.get("at"))}, arms)
    if "versus" in test:
        at = test.get("at")
        one, two = (test["arm"], at), (test["versus"], test.get("versus_at", at))
        return [(arm, only_point(table, arm, where)) for arm, where in (one, two)]
    found = cells(table, test, _arms(test, table))
    factors = [test[key] for key in ("rows", "columns") if key in test]
    levels = {axis: [str(v) for v in two] for f in factors for axis, two in f.items()}
    kept = [c for c in found if all(dict(c[1]).get(a, c[0]) in two for a, two in levels.items())]
    if not kept:
        raise NoRows("no runs of the cells that are compared")
    return kept


def _arms(test: Mapping[str, Any], table: Table) -> list[str]:
    if "versus" in test:
        return list(dict.fromkeys([test["arm"], test["versus"]]))
    if "weights" in test:
        return list(test["weights"])
    if "cells" in test:
        return [arm for row in test["cells"] for arm in row]
    return arms_of(table, test)


def _floored(value: float, floor: float) -> float:
    return value if abs(value) >= floor else floor


def _name(cell: tuple[str, Point]) -> str:
    return " ".join([cell[0], *(f"{k}={v}" for k, v in cell[1])])
