"""The tests that a claim may name, and the keys of each. What they compute is in `lab.estimates`."""

from __future__ import annotations

from typing import Any

from flattrain.lab import matching
from flattrain.lab.events import check_event
from flattrain.lab.region import REGIONS, region
from flattrain.lab.scope import ARM, Scope
from flattrain.ranges import Refused, refusal, suggest

ONE = ("quantity", "arm", "at", "when", "divided_by")
PAIR = (*ONE, "versus", "versus_at")
RUNS = ("arm", "arms", "at", "when")
TESTS: dict[str, tuple[str, ...]] = {
    "median": ONE,
    "mean": ONE,
    "mean_ratio": (*ONE, "reference"),
    "share": (*ONE, *REGIONS),
    "difference": PAIR,
    "ratio": PAIR,
    "lower": PAIR,
    "sign_agreement": ("quantity", "arm", "versus", "at", "x", "threshold"),
    "change_correlation": ("quantity", "arm", "versus", "at", "x"),
    "change_ratio": ("quantity", "reference", "arm", "versus", "at"),
    "rise": ("quantity", "arm", "at", "before", "at_least"),
    "spread": ("quantity", "arm", "at", "divided_by", "over", "among"),
    "median_of_runs": ("quantity", "among", *RUNS),
    "rank_correlation": ("x", "y", "minus", "among", *RUNS),
    "partial_rank_correlation": ("x", "y", "given", *RUNS),
    "stratified_rank_correlation": ("x", "y", "minus", "among", "by", *RUNS),
    "simpson": ("x", "y", "by", *RUNS),
    "correlation_change": ("x", "y", "minus", "coefficient", *RUNS),
    "correlation_slope": ("x", "y", "over", "coefficient", *RUNS),
    "granulated_kendall": ("x", "y", "minus", "axes", *RUNS),
    "conditional_information": ("x", "y", "axes", *RUNS),
    "sign_error": ("x", "y", "axes", "environments", "examples", *RUNS),
    "comovement": ("x", "y", "arm", "at", "among"),
    "line": ("x", "y", "log", "of", "arm", "at", "among"),
    "fall": ("quantity", "arm", "at"),
    "lag": ("event", "behind", "arm", "at"),
    "nearer": ("event", "to", "than", "arm", "at"),
    "slope": ("x", "y", "log", *RUNS),
    "mean_slope": ("x", "y", "log", *RUNS),
    "effect": ("quantity", "rows", "columns", "cells", "of", "arm", "at", "when"),
    "contrast": ("quantity", "weights", "at", "when"),
    "coverage": ("quantity", "reference", "z", *RUNS),
}
_NEEDED = ("over", "by", "given", "reference", "of", "before")
_OF_RUNS = ("comovement", "line", "sign_agreement", "change_correlation")  # x is measured, not an axis
COEFFICIENTS = ("kendall", "pearson")
VIEWS = ("worst", "mean")
EVENTS = ("event", "behind", "to", "than")
OF = {"effect": ("rows", "columns", "interaction"), "line": ("slope", "correlation")}
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
        if key in keys and kind != "correlation_change":
            need = scope.need_quantity if kind in _OF_RUNS else scope.need_variable
            need(settings.get(key), f"{where}.{key}")
    if kind == "correlation_change":
        _check_change(settings, where, scope)
    elif settings.get("minus") is not None:
        scope.need_variable(settings["minus"], f"{where}.minus")
    for key in ("arm", "versus"):
        if key in keys and (key in settings or not {"arms", "cells"} & set(keys)):
            scope.need_arm(settings.get(key), f"{where}.{key}")
    if settings.get("arms") is not None:
        if "arm" in settings:
            raise Refused(f"{where}: give arm or arms, not both")
        scope.need_arms(settings["arms"], f"{where}.arms")
    for key in ("at", "versus_at"):
        scope.need_point(settings.get(key), f"{where}.{key}")
    _check_axes(settings, where, scope)
    if kind == "correlation_slope" and isinstance(settings["over"], str):
        scope.need_variable(settings["over"], f"{where}.over")
    _check_numbers(kind, settings, where, scope)
    for key in EVENTS:
        if key in keys:
            check_event(settings.get(key), f"{where}.{key}", scope)
    if kind == "contrast":
        _check_weights(settings.get("weights"), f"{where}.weights", scope)
    for key, allowed in (
        ("environments", VIEWS),
        ("of", OF.get(kind, ())),
        ("log", LOGS),
        ("coefficient", COEFFICIENTS),
    ):
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
    if isinstance(settings.get("over"), dict):
        _check_levels(settings, where, scope)
    elif "over" in settings:
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


def _check_change(settings: dict[str, Any], where: str, scope: Scope) -> None:
    """x and y, each a variable or lists of the same length, and `minus`, two variables."""
    lists = [settings[key] if isinstance(settings.get(key), list) else [settings.get(key)] for key in "xy"]
    for key, names in zip("xy", lists, strict=True):
        for name in names:
            scope.need_variable(name, f"{where}.{key}")
    if len(lists[0]) != len(lists[1]) or not lists[0]:
        raise Refused(f"{where}: x and y must be lists of the same length, got {lists[0]} and {lists[1]}")
    minus = settings.get("minus")
    if not isinstance(minus, list) or len(minus) != 2:
        raise Refused(f"{where}.minus: must be a list of two variables, the other x and y, got {minus!r}")
    for name in minus:
        scope.need_variable(name, f"{where}.minus")


def _check_levels(settings: dict[str, Any], where: str, scope: Scope) -> None:
    """`over` as a table of arms and numbers."""
    if "arm" in settings or "arms" in settings:
        raise Refused(f"{where}: over names the arms; leave out arm and arms")
    scope.need_arms(list(settings["over"]), f"{where}.over")
    for arm in settings["over"]:
        check_number(settings["over"], arm, "float", f"{where}.over")


def _check_numbers(kind: str, settings: dict[str, Any], where: str, scope: Scope) -> None:
    if kind in ("share", "rise"):
        region({k: v for k, v in settings.items() if k in REGIONS}, where)
    if "among" in settings:
        check_condition(settings["among"], f"{where}.among", scope, arm=False)
    check_divisor(settings, where, scope)
    for key in ("z", "examples"):
        check_number(settings, key, "Positive", where)
    check_number(settings, "before", "Fraction", where)
    check_number(settings, "threshold", "float", where)
    if kind in ("mean_ratio", "change_ratio"):
        scope.need_quantity(settings["reference"], f"{where}.reference")
    reference = settings.get("reference", 0.0)
    if refusal("float", reference) and reference not in scope.quantities:
        raise Refused(
            f"{where}.reference: must be a number or a quantity, got {reference!r}"
            + suggest(str(reference), scope.quantities)
        )


def _check_weights(weights: Any, where: str, scope: Scope) -> None:
    """Of two arms or more, of sum 0: a level that all have in common does not count."""
    if not isinstance(weights, dict) or len(weights) < 2:
        raise Refused(f"{where}: must be a table of two arms or more and their weights, got {weights!r}")
    for arm in weights:
        scope.need_arm(arm, where)
        check_number(weights, arm, "float", where)
    if abs(sum(weights.values())) > 1e-9 * max(map(abs, weights.values())):
        raise Refused(f"{where}: the weights of a contrast add up to 0, these to {sum(weights.values()):.6g}")


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
