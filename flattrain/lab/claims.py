"""Claims: what a recipe states before its first run, checked key by key.

W3:
  says: …                       the statement, in words
  source: …                     paper and place
  test: {median: {quantity: test_error, arm: bias, at: {n: 100}}}
  predicts: {at_least: 0.2}     where the estimate must lie for `supported`
  refuted_if: {below: 0.1}      where it must lie for `refuted`; default: outside what is predicted
  void_unless: [{quantity: train_loss, arm: bias, at_most: 0.01}]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from flattrain.ranges import Refused, refusal, suggest

REGIONS = ("at_most", "at_least", "above", "below", "between")
WHERE = ("arm", "at")
TESTS: dict[str, tuple[str, ...]] = {
    "median": ("quantity", *WHERE, "divided_by", "when"),
    "share": ("quantity", *WHERE, "divided_by", "when", *REGIONS),
    "difference": ("quantity", *WHERE, "versus", "versus_at", "when"),
    "ratio": ("quantity", *WHERE, "versus", "versus_at", "when"),
    "lower": ("quantity", *WHERE, "versus", "versus_at", "when"),
    "spread": ("quantity", *WHERE, "divided_by", "over", "among"),
    "rank_correlation": ("x", "y", *WHERE),
}
KEYS = ("says", "source", "test", "predicts", "refuted_if", "void_unless")


class Scope(NamedTuple):
    """What claims and figures may name."""

    arms: tuple[str, ...]
    points: Mapping[str, set[Any]]
    quantities: tuple[str, ...]

    def need_quantity(self, name: Any, where: str) -> None:
        if not isinstance(name, str) or name not in self.quantities:
            raise Refused(f"{where}: {name!r} is not measured{suggest(str(name), self.quantities)}")

    def need_arm(self, name: Any, where: str) -> None:
        if name not in self.arms:
            raise Refused(f"{where}: unknown arm {name!r}{suggest(str(name), self.arms)}")

    def need_point(self, at: Any, where: str) -> None:
        if at is None:
            return
        if not isinstance(at, dict):
            raise Refused(f"{where}: must be a table of axis and value, got {at!r}")
        for axis, value in at.items():
            if axis not in self.points:
                raise Refused(f"{where}: unknown axis {axis!r}{suggest(str(axis), self.points)}")
            if value not in list(self.points[axis]):
                raise Refused(
                    f"{where}.{axis}: {value!r} is not on the grid"
                    + suggest(str(value), map(str, self.points[axis]))
                )


class Region(NamedTuple):
    """A set of real numbers: at_most, at_least, above, below or between."""

    kind: str
    bound: Any

    def holds(self, value: float) -> bool:
        return {
            "at_most": lambda v, b: v <= b,
            "at_least": lambda v, b: v >= b,
            "above": lambda v, b: v > b,
            "below": lambda v, b: v < b,
            "between": lambda v, b: b[0] <= v <= b[1],
        }[self.kind](value, self.bound)

    def __str__(self) -> str:
        if self.kind == "between":
            return f"{self.bound[0]:.10g} to {self.bound[1]:.10g}"
        return f"{_SIGNS[self.kind]} {self.bound:.10g}"


_SIGNS = {"at_most": "≤", "at_least": "≥", "above": ">", "below": "<"}


@dataclass(frozen=True)
class Claim:
    """One claim. `refuted_if` is None when it is everything that is not predicted."""

    id: str
    says: str
    source: str
    kind: str
    test: dict[str, Any]
    predicts: Region
    refuted_if: Region | None
    void_unless: tuple[dict[str, Any], ...]

    def refutes(self, value: float) -> bool:
        if self.refuted_if is None:
            return not self.predicts.holds(value)
        return self.refuted_if.holds(value)


def region(spec: Any, where: str) -> Region:
    """{at_most: x} and its like."""
    if not isinstance(spec, dict) or len(spec) != 1 or next(iter(spec)) not in REGIONS:
        key = next(iter(spec)) if isinstance(spec, dict) and spec else ""
        raise Refused(f"{where}: give exactly one of {', '.join(REGIONS)}{suggest(str(key), REGIONS)}")
    ((kind, bound),) = spec.items()
    wanted = "tuple[float, ...]" if kind == "between" else "float"
    problem = refusal(wanted, bound)
    if problem or (kind == "between" and (len(bound) != 2 or bound[0] > bound[1])):
        raise Refused(f"{where}.{kind} {problem or 'must be [low, high]'}")
    return Region(kind, bound)


def condition(spec: dict[str, Any]) -> Region:
    """The region among the keys of a condition or of a share."""
    return Region(*next((k, spec[k]) for k in REGIONS if k in spec))


def read_claims(table: Any, scope: Scope) -> tuple[Claim, ...]:
    """Check every claim of a recipe."""
    return tuple(_claim(str(name), spec, scope) for name, spec in (table or {}).items())


def _claim(name: str, spec: Any, scope: Scope) -> Claim:
    where = f"claims.{name}"
    if not isinstance(spec, dict):
        raise Refused(f"{where}: must be a table, got {spec!r}")
    for key in spec:
        if key not in KEYS:
            raise Refused(f"{where}: unknown key {key!r}{suggest(str(key), KEYS)}")
    for key in ("says", "test", "predicts"):
        if key not in spec:
            raise Refused(f"{where}: {key} is missing")
    test = spec["test"]
    if not isinstance(test, dict) or len(test) != 1 or next(iter(test)) not in TESTS:
        given = next(iter(test)) if isinstance(test, dict) and test else test
        raise Refused(f"{where}.test: give exactly one test{suggest(str(given), TESTS)}")
    ((kind, settings),) = test.items()
    _check_test(kind, settings, f"{where}.test.{kind}", scope)
    void = spec.get("void_unless") or []
    if not isinstance(void, list):
        raise Refused(f"{where}.void_unless: must be a list of conditions, got {void!r}")
    for k, entry in enumerate(void):
        _check_condition(entry, f"{where}.void_unless[{k}]", scope)
    return Claim(
        name,
        str(spec["says"]),
        str(spec.get("source", "")),
        kind,
        settings,
        region(spec["predicts"], f"{where}.predicts"),
        region(spec["refuted_if"], f"{where}.refuted_if") if "refuted_if" in spec else None,
        tuple(void),
    )


def _check_test(kind: str, settings: Any, where: str, scope: Scope) -> None:
    if not isinstance(settings, dict):
        raise Refused(f"{where}: must be a table, got {settings!r}")
    for key in settings:
        if key not in TESTS[kind]:
            raise Refused(f"{where}: unknown key {key!r}{suggest(str(key), TESTS[kind])}")
    for key in ("quantity", "x", "y"):
        if key in TESTS[kind]:
            scope.need_quantity(settings.get(key), f"{where}.{key}")
    for key in ("arm", "versus"):
        if key in TESTS[kind]:
            scope.need_arm(settings.get(key), f"{where}.{key}")
    for key in ("at", "versus_at"):
        scope.need_point(settings.get(key), f"{where}.{key}")
    if kind == "spread":
        over = settings.get("over")
        if over not in scope.points:
            raise Refused(f"{where}.over: unknown axis {over!r}{suggest(str(over), scope.points)}")
        if "among" in settings:
            _check_condition(settings["among"], f"{where}.among", scope, arm=False)
    if kind == "share":
        region({k: v for k, v in settings.items() if k in REGIONS}, where)
    if "divided_by" in settings:
        problem = refusal("Positive", settings["divided_by"])
        if problem:
            raise Refused(f"{where}.divided_by {problem}")
    if settings.get("when") is not None:
        _check_condition(settings["when"], f"{where}.when", scope, arm=False)
        if "at_most" not in settings["when"]:
            raise Refused(f"{where}.when: give at_most; the first step at or below it is compared")


def _check_condition(spec: Any, where: str, scope: Scope, arm: bool = True) -> None:
    known = ("quantity", "divided_by", *REGIONS, *(WHERE if arm else ()))
    if not isinstance(spec, dict):
        raise Refused(f"{where}: must be a table, got {spec!r}")
    for key in spec:
        if key not in known:
            raise Refused(f"{where}: unknown key {key!r}{suggest(str(key), known)}")
    scope.need_quantity(spec.get("quantity"), f"{where}.quantity")
    if arm:
        scope.need_arm(spec.get("arm"), f"{where}.arm")
        scope.need_point(spec.get("at"), f"{where}.at")
    region({k: v for k, v in spec.items() if k in REGIONS}, where)
