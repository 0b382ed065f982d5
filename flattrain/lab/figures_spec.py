"""What figures a recipe asks for, checked. Drawing is in `lab.figures`."""

from __future__ import annotations

from typing import Any, NamedTuple

from flattrain.lab.scope import Scope
from flattrain.ranges import Refused, suggest

KINDS = {
    "trajectory": ("quantity", "arms", "at", "title", "log"),
    "scatter": ("x", "y", "arms", "at", "title", "log"),
    "sweep": ("over", "quantity", "arms", "title", "log"),
}


class FigureSpec(NamedTuple):
    """One figure: its kind and the settings of that kind."""

    kind: str
    settings: dict[str, Any]


def read_figures(entries: Any, scope: Scope) -> tuple[FigureSpec, ...]:
    """Check kinds, keys, quantities, arms and axes."""
    out = []
    for k, entry in enumerate(entries or []):
        where = f"figures[{k}]"
        if not isinstance(entry, dict) or len(entry) != 1:
            raise Refused(f"{where}: give one of {', '.join(KINDS)} with its settings")
        ((kind, settings),) = entry.items()
        if kind not in KINDS:
            raise Refused(f"{where}: unknown figure {kind!r}{suggest(kind, KINDS)}")
        if not isinstance(settings, dict):
            raise Refused(f"{where}.{kind}: must be a table, got {settings!r}")
        for key in settings:
            if key not in KINDS[kind]:
                raise Refused(f"{where}.{kind}: unknown key {key!r}{suggest(key, KINDS[kind])}")
        for key in ("quantity", "x", "y"):
            if key in KINDS[kind]:
                scope.need_quantity(settings.get(key), f"{where}.{kind}.{key}")
        for arm in settings.get("arms") or []:
            scope.need_arm(arm, f"{where}.{kind}.arms")
        scope.need_point(settings.get("at"), f"{where}.{kind}.at")
        if kind == "sweep" and settings.get("over") not in scope.points:
            raise Refused(
                f"{where}.sweep.over: unknown axis {settings.get('over')!r}"
                + suggest(str(settings.get("over")), scope.points)
            )
        out.append(FigureSpec(kind, settings))
    return tuple(out)
