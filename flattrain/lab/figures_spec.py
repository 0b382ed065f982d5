"""What figures a recipe asks for, checked, and those it gets when it asks for none.

figures:
  - trajectory: {quantity: test_error, log: y}
  - scatter: {x: relative_flatness, y: {difference: [test_loss, train_loss]}}
  - sweep: {over: n, quantity: test_error}
  - final: {quantity: test_error, at: {n: 100}}
  - correlations: {x: [top_eigenvalue, weight_norm], y: test_error}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from flattrain.lab import correlations_spec
from flattrain.lab.scope import Scope
from flattrain.ranges import Refused, suggest

KINDS = {
    "trajectory": ("quantity", "arms", "at", "title", "log"),
    "scatter": ("x", "y", "arms", "at", "title", "log"),
    "sweep": ("over", "quantity", "arms", "title", "log"),
    "final": ("quantity", "arms", "at", "title", "log"),
    "correlations": correlations_spec.KEYS,
}
LOG = ("x", "y", "xy")
OUTCOMES = ("train_loss", "test_loss", "train_error", "test_error")


class FigureSpec(NamedTuple):
    """One figure: its kind and the settings of that kind."""

    kind: str
    settings: dict[str, Any]


def read_figures(entries: Any, scope: Scope) -> tuple[FigureSpec, ...]:
    """Check kinds, keys, quantities, arms and axes."""
    if not isinstance(entries or [], list):
        raise Refused(f"figures: must be a list, got {entries!r}")
    return tuple(_figure(entry, f"figures[{k}]", scope) for k, entry in enumerate(entries or []))


def _figure(entry: Any, where: str, scope: Scope) -> FigureSpec:
    if not isinstance(entry, dict) or len(entry) != 1:
        raise Refused(f"{where}: give one of {', '.join(KINDS)} with its settings")
    ((kind, settings),) = entry.items()
    if kind not in KINDS:
        raise Refused(f"{where}: unknown figure {kind!r}{suggest(str(kind), KINDS)}")
    where = f"{where}.{kind}"
    if not isinstance(settings, dict):
        raise Refused(f"{where}: must be a table, got {settings!r}")
    for key in settings:
        if key not in KINDS[kind]:
            raise Refused(f"{where}: unknown key {key!r}{suggest(str(key), KINDS[kind])}")
    if kind == "correlations":
        correlations_spec.check_correlations(settings, where, scope)
        return FigureSpec(kind, settings)
    for key in ("quantity", "x", "y"):
        if key in KINDS[kind]:
            _quantity(settings.get(key), f"{where}.{key}", scope)
    arms = settings.get("arms") or []
    if not isinstance(arms, list):
        raise Refused(f"{where}.arms: must be a list of arms, got {arms!r}")
    for arm in arms:
        scope.need_arm(arm, f"{where}.arms")
    scope.need_point(settings.get("at"), f"{where}.at")
    allowed = ("x",) if kind == "final" else LOG  # the arms of `final` stand on y
    if settings.get("log") not in (None, *allowed):
        raise Refused(f"{where}.log: must be one of {', '.join(allowed)}, got {settings['log']!r}")
    over = settings.get("over")
    if kind == "sweep" and over not in tuple(scope.points):
        raise Refused(f"{where}.over: unknown axis {over!r}{suggest(str(over), scope.points)}")
    return FigureSpec(kind, settings)


def _quantity(value: Any, where: str, scope: Scope) -> None:
    """A measured quantity, or the difference of two."""
    if not isinstance(value, dict):
        return scope.need_quantity(value, where)
    pair = value.get("difference")
    if set(value) != {"difference"} or not isinstance(pair, list) or len(pair) != 2:
        raise Refused(f"{where}: give a quantity, or {{difference: [quantity, quantity]}}")
    for name in pair:
        scope.need_quantity(name, f"{where}.difference")
    return None


def default_figures(
    claimed: tuple[str, ...], along: tuple[str, ...], end: tuple[str, ...], points: Mapping[str, set[Any]]
) -> tuple[FigureSpec, ...]:
    """What shows the claims of a recipe that names no figures: at most five.

    `claimed` are the quantities of its claims, `along` and `end` those measured at every milestone and at the
    end. One curve and one picture of the end for each claimed quantity (two at most), and a scatter of the
    first measure of flatness against the gap, or the test error.
    """
    shown = claimed or along[:1] or end[:1]
    axis = next((a for a, values in points.items() if len(values) > 1), None)
    out = [FigureSpec("trajectory", {"quantity": q}) for q in shown if q in along][:2]
    for quantity in shown[:2]:
        if axis is None:
            out.append(FigureSpec("final", {"quantity": quantity}))
        else:
            out.append(FigureSpec("sweep", {"over": axis, "quantity": quantity}))
    measured = (*along, *end)
    flatness = [q for q in (*shown, *measured) if q not in OUTCOMES]
    if flatness:
        for part in ("loss", "error"):
            pair = [f"test_{part}", f"train_{part}"]
            if set(pair) <= set(measured):
                return (*out, FigureSpec("scatter", {"x": flatness[0], "y": {"difference": pair}}))
        if "test_error" in measured:
            out.append(FigureSpec("scatter", {"x": flatness[0], "y": "test_error"}))
    return tuple(out)
