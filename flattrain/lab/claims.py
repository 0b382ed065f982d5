"""Claims: what a recipe states before its first run, checked key by key.

W3:
  says: …                       the statement, in words
  source: …                     paper and place
  setting: …                    where it is said to hold, in words
  test: {median: {quantity: test_error, arm: bias, at: {n: 100}}}
  predicts: {at_least: 0.2}     where the estimate must lie for `supported`
  refuted_if: {below: 0.1}      where it must lie for `refuted`; default: outside what is predicted
  level: 0.95                   of the interval; with `sides: one`, of each of its ends
  sides: two
  family: …                     the claims that share one error rate under `correction: holm`
  void_unless: [{quantity: train_loss, arm: bias, at_most: 0.01}]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flattrain.lab.claim_tests import TESTS, check_test
from flattrain.lab.region import Region, region
from flattrain.lab.scope import Scope
from flattrain.lab.statistics.interval import LEVEL
from flattrain.lab.void_rules import check_rule
from flattrain.ranges import Refused, refusal, suggest

KEYS = (
    "says", "source", "setting", "test", "predicts", "refuted_if", "level", "sides", "family", "void_unless"
)  # fmt: skip
SIDES = ("one", "two")
CORRECTIONS = ("none", "holm")


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
    setting: str = ""
    level: float = LEVEL
    sides: str = "two"
    family: str = ""

    def refutes(self, value: float) -> bool:
        if self.refuted_if is None:
            return not self.predicts.holds(value)
        return self.refuted_if.holds(value)

    def could_be_refuted(self, low: float, high: float) -> bool:
        """Whether [low, high] has a point where the claim is refuted."""
        if self.refuted_if is None:
            return not (self.predicts.holds(low) and self.predicts.holds(high))
        return self.refuted_if.meets(low, high)


def read_claims(table: Any, scope: Scope) -> tuple[Claim, ...]:
    """Check every claim of a recipe."""
    return tuple(_claim(str(name), spec, scope) for name, spec in (table or {}).items())


def read_correction(value: Any) -> str:
    """`correction` of a recipe: none, or holm over its claims."""
    if value not in CORRECTIONS:
        raise Refused(
            f"correction: must be one of {', '.join(CORRECTIONS)}, got {value!r}"
            + suggest(str(value), CORRECTIONS)
        )
    return str(value)


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
    check_test(kind, settings, f"{where}.test.{kind}", scope)
    void = spec.get("void_unless") or []
    if not isinstance(void, list):
        raise Refused(f"{where}.void_unless: must be a list of conditions, got {void!r}")
    for k, entry in enumerate(void):
        check_rule(entry, f"{where}.void_unless[{k}]", scope)
    return Claim(
        name,
        str(spec["says"]),
        str(spec.get("source", "")),
        kind,
        settings,
        region(spec["predicts"], f"{where}.predicts"),
        region(spec["refuted_if"], f"{where}.refuted_if") if "refuted_if" in spec else None,
        tuple(void),
        str(spec.get("setting") or ""),
        _level(spec.get("level", LEVEL), f"{where}.level"),
        _sides(spec.get("sides", "two"), f"{where}.sides"),
        str(spec.get("family") or ""),
    )


def _level(value: Any, where: str) -> float:
    problem = refusal("float", value)
    if problem or not 0.5 < value < 1:
        raise Refused(f"{where} must be a number above 0.5 and below 1, such as 0.95, got {value!r}")
    return float(value)


def _sides(value: Any, where: str) -> str:
    if value not in SIDES:
        raise Refused(f"{where} must be one or two, got {value!r}")
    return str(value)
