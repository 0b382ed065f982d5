"""When something happens along a run: at which of its milestones. No torch here.

{quantity: test_error, at_most: 0.5}                the first milestone at which the value lies there
{quantity: relative_flatness, turn: peak}           where it is largest, the first of equals
{quantity: relative_flatness, turn: half_fall}      the first after that at or below half of the largest
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from flattrain.lab.region import REGIONS, condition, region
from flattrain.lab.results import Row, Table
from flattrain.lab.scope import Scope
from flattrain.lab.selection import NoRows, Point, Void
from flattrain.ranges import Refused, suggest

TURNS = ("peak", "half_fall")


def check_event(spec: Any, where: str, scope: Scope) -> None:
    """Refuse what is not one of the forms above."""
    if not isinstance(spec, dict):
        raise Refused(f"{where}: must be a table, got {spec!r}")
    for key in spec:
        if key not in ("quantity", "turn", *REGIONS):
            raise Refused(f"{where}: unknown key {key!r}{suggest(str(key), ('quantity', 'turn', *REGIONS))}")
    scope.need_quantity(spec.get("quantity"), f"{where}.quantity")
    if "turn" not in spec:
        region({k: v for k, v in spec.items() if k != "quantity"}, where)
    elif len(spec) > 2 or spec["turn"] not in TURNS:
        raise Refused(f"{where}.turn: must be {' or '.join(TURNS)} and stand alone, got {spec!r}")


def steps_of(table: Table, spec: Mapping[str, Any], arm: str, point: Point) -> dict[int, int]:
    """seed -> the step of the event; a run in which it never happens is a reason to void."""
    series = table.series(spec["quantity"], arm, point)
    if not series:
        raise NoRows(f"no {spec['quantity']} for arm {arm}")
    found = {seed: _step(spec, rows) for seed, rows in series.items()}
    never = [str(seed) for seed, step in sorted(found.items()) if step is None]
    if never:
        raise Void(f"seeds {', '.join(never)} of arm {arm} never come to {event_text(spec)}")
    return {seed: step for seed, step in found.items() if step is not None}


def event_text(spec: Mapping[str, Any]) -> str:
    """In words: "the peak of relative_flatness"."""
    if "turn" in spec:
        return f"the {spec['turn'].replace('_', ' ')} of {spec['quantity']}"
    return f"{spec['quantity']} {condition(spec)}"


def _step(spec: Mapping[str, Any], rows: list[Row]) -> int | None:
    finite = [row for row in rows if math.isfinite(row.value)]
    if "turn" not in spec:
        wanted = condition(spec)
        return next((row.step for row in finite if wanted.holds(row.value)), None)
    if not finite:
        return None
    peak = max(finite, key=lambda row: row.value)
    if spec["turn"] == "peak":
        return peak.step
    return next((r.step for r in finite if r.step > peak.step and r.value <= peak.value / 2), None)
