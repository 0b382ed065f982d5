"""The tests that a claim may name, and the keys of each. What they compute is in `lab.estimates`."""

from __future__ import annotations

from typing import Any

from flattrain.lab import matching
from flattrain.lab.region import REGIONS, region
from flattrain.lab.scope import ARM, Scope
from flattrain.ranges import Refused, refusal, suggest

ONE = ("quantity", "arm", "at", "when", "divided_by")
PAIR = (*ONE, "versus", "versus_at")
RUNS = ("arm", "arms", "at", "when")
TESTS: dict[str, tuple[str, ...]] = {
    "median": ONE,
    "share": (*ONE, *REGIONS),
    "difference": PAIR,
    "ratio": PAIR,
    "lower": PAIR,
    "rise": ("quantity", "arm", "at", "before", "at_least"),
    "spread": ("quantity", "arm", "at", "divided_by", "over", "among"),
    "median_of_runs": ("quantity", "among", *RUNS),
    "rank_correlation": ("x", "y", "minus", "among", *RUNS),
    "partial_rank_correlation": ("x", "y", "given", *RUNS),
    "stratified_rank_correlation": ("x", "y", "minus", "among", "by", *RUNS),
    "simpson": ("x", "y", "by", *RUNS),
    "granulated_kendall": ("x", "y", "minus", "axes", *RUNS),
    "conditional_information": ("x", "y", "axes", *RUNS),
    "sign_error": ("x", "y", "axes", "environments", "examples", *RUNS),
    "comovement": ("x", "y", "arm", "at", "among"),
    "slope": ("x", "y", "log", *RUNS),
    "effect": ("quantity", "rows", "columns", "cells", "of", "arm", "at", "when"),
    "coverage": ("quantity", "reference", "z", *RUNS),
}
_NEEDED = ("over", "by", "given", "reference", "of", "before")
VIEWS = ("worst", "mean")
EFFECTS = ("rows", "columns", "interaction")
LOGS = ("x", "y", "xy")


def check_test(kind: str, settings: Any, where: str, scope: Scope) -> None:
    """Refuse keys, arms, axes, values and quantities that the test or the recipe does not have."""
    keys = TESTS[kind]
    check_keys(settings, keys, where)
    for key in _NEEDED:
        if key in keys and settings.get(key) is None:
            raise Refused(f"{where}: {key} is missing")
    if "quantity" in keys:
        scope.need_quantity(settings.get("quantity"), f"{where}.quantity")
    for key in ("x", "y"):
        if key in keys:
            need = scope.need_quantity if kind == "comovement" else scope.need_variable
            need(settings.get(key), f"{where}.{key}")
    if settings.get("minus") is not None:
        scope.need_variable(settings["minus"], f"{where}.minus")
    for key in ("arm", "versus"):
        if key in keys and (key in settings or ("arms" not in keys and "cells" not in keys)):
            scope.need_arm(settings.get(key), f"{where}.{key}")
    if settings.get("arms") is not None:
        if "arm" in settings:
            raise Refused(f"{where}: give arm or arms, not both")
        scope.need_arms(settings["arms"], f"{where}.arms")
    for key in ("at", "versus_at"):
        scope.need_point(settings.get(key), f"{where}.{key}")
    _check_axes(settings, where, scope)
    _check_numbers(kind, settings, where, scope)
    for key, allowed in (("environments", VIEWS), ("of", EFFECTS), ("log", LOGS)):
        if key in settings and settings[key] not in allowed:
            raise Refused(
                f"{where}.{key} must be one of {', '.join(allowed)}, got {settings[key]!r}"
                + suggest(str(settings[key]), allowed)
            )
    if kind == "effect":
        _check_design(settings, where, scope)
    check_when(settings, where, scope)


def check_when(settings: dict[str, Any], where: str, scope: Scope) -> None:
    """`when`: where the runs are compared, in one of the forms of `lab.matching`."""
    if settings.get("when") is None:
        return
    quantity = matching.check_when(settings["when"], f"{where}.when", rivals="versus" in settings)
    if quantity:
        scope.need_quantity(quantity, f"{where}.when.quantity")


def check_condition(spec: Any, where: str, scope: Scope, arm: bool = True) -> None:
    """{quantity, arm, at, divided_by} and a region."""
    check_keys(spec, ("quantity", "divided_by", *REGIONS, *(("arm", "at") if arm else ())), where)
    scope.need_quantity(spec.get("quantity"), f"{where}.quantity")
    if arm:
        scope.need_arm(spec.get("arm"), f"{where}.arm")
        scope.need_point(spec.get("at"), f"{where}.at")
    check_divisor(spec, where, scope)
    region({k: v for k, v in spec.items() if k in REGIONS}, where)


def check_keys(settings: Any, keys: tuple[str, ...], where: str) -> None:
    if not isinstance(settings, dict):
        raise Refused(f"{where}: must be a table, got {settings!r}")
    for key in settings:
        if key not in keys:
            raise Refused(f"{where}: unknown key {key!r}{suggest(str(key), keys)}")


def check_divisor(settings: dict[str, Any], where: str, scope: Scope) -> None:
    """`divided_by`: a number, or a quantity of the same runs."""
    if isinstance(settings.get("divided_by"), str):
        scope.need_quantity(settings["divided_by"], f"{where}.divided_by")
        return
    check_number(settings, "divided_by", "Positive", where)


def check_number(settings: dict[str, Any], key: str, kind: str, where: str) -> None:
    problem = refusal(kind, settings[key]) if key in settings else None
    if problem:
        raise Refused(f"{where}.{key} {problem}")


def _check_axes(settings: dict[str, Any], where: str, scope: Scope) -> None:
    if "over" in settings:
        scope.need_axis(settings["over"], f"{where}.over")
    for key in ("by", "axes"):
        if settings.get(key) is not None:
            scope.need_axes(settings[key], f"{where}.{key}")
    if "given" in settings:
        given = settings["given"]
        if not isinstance(given, list) or not given:
            raise Refused(f"{where}.given: must be a list of quantities or axes, got {given!r}")
        for name in given:
            scope.need_variable(name, f"{where}.given")
            if name in (settings["x"], settings["y"]) or given.count(name) > 1:
                raise Refused(f"{where}.given: {name!r} is there twice; x, y and what is given are different")


def _check_numbers(kind: str, settings: dict[str, Any], where: str, scope: Scope) -> None:
    if kind in ("share", "rise"):
        region({k: v for k, v in settings.items() if k in REGIONS}, where)
    if "among" in settings:
        check_condition(settings["among"], f"{where}.among", scope, arm=False)
    check_divisor(settings, where, scope)
    for key in ("z", "examples"):
        check_number(settings, key, "Positive", where)
    check_number(settings, "before", "Fraction", where)
    reference = settings.get("reference", 0.0)
    if refusal("float", reference) and reference not in scope.quantities:
        raise Refused(
            f"{where}.reference: must be a number or a quantity, got {reference!r}"
            + suggest(str(reference), scope.quantities)
        )


def _check_design(settings: dict[str, Any], where: str, scope: Scope) -> None:
    """Either `cells` [[arm, arm], [arm, arm]], or `rows` and `columns`, each {axis or arm: [low, high]}."""
    if "cells" in settings:
        if {"rows", "columns", "arm"} & set(settings):
            raise Refused(f"{where}: give cells, or rows and columns, not both")
        cells = settings["cells"]
        if not isinstance(cells, list) or [len(r) if isinstance(r, list) else 0 for r in cells] != [2, 2]:
            raise Refused(f"{where}.cells: must be two rows of two arms, got {cells!r}")
        scope.need_arms([*cells[0], *cells[1]], f"{where}.cells")
        return
    named = []
    for key in ("rows", "columns"):
        factor = settings.get(key)
        if not isinstance(factor, dict) or len(factor) != 1:
            raise Refused(f"{where}.{key}: give one axis (or arm) and its two levels, got {factor!r}")
        ((axis, levels),) = factor.items()
        if not isinstance(levels, list) or len(levels) != 2 or levels[0] == levels[1]:
            raise Refused(f"{where}.{key}.{axis}: must be two different levels, got {levels!r}")
        if axis == ARM:
            scope.need_arms(levels, f"{where}.{key}")
        else:
            scope.need_axis(axis, f"{where}.{key}")
            for level in levels:
                scope.need_value(axis, level, f"{where}.{key}.{axis}")
        named.append(axis)
    if named[0] == named[1]:
        raise Refused(f"{where}: rows and columns are both {named[0]!r}")
    if ARM in named and "arm" in settings:
        raise Refused(f"{where}: the arms are a factor; leave out arm")
    if ARM not in named and "arm" not in settings:
        raise Refused(f"{where}: arm is missing")
