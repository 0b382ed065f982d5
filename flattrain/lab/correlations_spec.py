"""What a figure of many correlations is asked for; drawn by `lab.correlations`. No matplotlib here.

    - correlations:
        x: [relative_flatness, top_eigenvalue, weight_norm]
        y: loss_gap
        test: {granulated_kendall: {when: {quantity: train_loss, at_most: 0.1}}}
        groups: {mnist: [mnist-sgd, mnist-adam], digits: [digits-sgd, digits-adam]}

`test` is a test of a claim that takes x and y (default: rank_correlation), with its other settings; `groups`
names sets of arms, by default all of them together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flattrain.lab.claim_tests import check_test
from flattrain.lab.scope import Scope
from flattrain.ranges import Refused, suggest

KEYS = ("x", "y", "test", "groups", "title")
KINDS = (
    "rank_correlation",
    "partial_rank_correlation",
    "stratified_rank_correlation",
    "granulated_kendall",
)
ALL = "all runs"


def check_correlations(settings: dict[str, Any], where: str, scope: Scope) -> None:
    """Refuse what is no list of variables, no test of x and y, or no groups of arms."""
    kind, more = test_of(settings, where)
    variables = settings.get("x")
    if not isinstance(variables, list) or not variables or not all(isinstance(x, str) for x in variables):
        raise Refused(f"{where}.x: must be a list of quantities or axes, got {variables!r}")
    for own in ("x", "y", "arm", "arms"):
        if own in more:
            raise Refused(f"{where}.test.{kind}: {own} stands outside of the test (arms as groups)")
    for x in variables:
        check_test(kind, {**more, "x": x, "y": settings.get("y")}, f"{where}.test.{kind}", scope)
    groups = settings.get("groups") or {ALL: list(scope.arms)}
    if not isinstance(groups, dict):
        raise Refused(f"{where}.groups: must be a table of names and arms, got {groups!r}")
    for name, arms in groups.items():
        scope.need_arms(arms, f"{where}.groups.{name}")


def test_of(settings: Mapping[str, Any], where: str = "") -> tuple[str, dict[str, Any]]:
    """The test and its settings beside x, y and the arms."""
    given = settings.get("test") or "rank_correlation"
    table = {given: {}} if isinstance(given, str) else given
    if not isinstance(table, dict) or len(table) != 1 or next(iter(table)) not in KINDS:
        named = next(iter(table)) if isinstance(table, dict) and table else given
        raise Refused(f"{where}.test: give one of {', '.join(KINDS)}{suggest(str(named), KINDS)}")
    ((kind, more),) = table.items()
    if not isinstance(more or {}, dict):
        raise Refused(f"{where}.test.{kind}: must be a table, got {more!r}")
    return kind, dict(more or {})
