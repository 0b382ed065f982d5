"""Runs compared where they are equal: in training loss, in trace, in gradient evaluations. No torch here.

    when: {quantity: train_loss, at_most: 0.1}             at the first milestone at or below 0.1
    when: {quantity: train_loss, equals: 0.1}              where it first falls to 0.1, between milestones
    when: {quantity: train_loss, equals: lowest_common}    the same at the lowest level that both arms reach
    when: {gradient_evaluations: 5000}                     equals: 5000 of that quantity
    when: {last: 0.25}                                     the median over the last quarter of the steps
    when: {last: 1, take: smallest}                        the smallest value, or largest, over all of them

Milestones are sparse: at the first one below a level an arm whose loss falls fast stands far below it, one
whose loss falls slowly just below. `equals` takes both to the level. With g the matched quantity, q the
compared one, and milestones a, b next to one another with g on both sides of the level x,

    q(x) = (1 − w) q_a + w q_b,     w = (s(x) − s(g_a)) / (s(g_b) − s(g_a)),

s the logarithm where x, g_a and g_b are positive, else the identity; for gradient evaluations always that. A
milestone with g = x is taken as it is. The first passage from above counts, as a trace often rises before it
falls; of a quantity that never falls to x, the first from below.

The lowest common level is found seed by seed: the larger of the arms' smallest g, each from its largest on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from statistics import median
from typing import Any

from flattrain.lab.region import REGIONS
from flattrain.lab.results import Row, Table
from flattrain.lab.spec import EVALUATIONS
from flattrain.ranges import Refused, refusal, suggest

LOWEST = "lowest_common"
KEYS = ("quantity", "at_most", "equals", "divided_by")
TAKES: dict[str, Callable[[list[float]], float]] = {"median": median, "smallest": min, "largest": max}

Run = tuple[str, tuple[tuple[str, str], ...]]  # arm and point
Series = Mapping[int, list[Row]]  # seed -> rows by step


def check_when(when: Any, where: str, rivals: bool) -> str:
    """The quantity that `when` matches on, "" if none; refused where it is not one of the forms above.

    rivals : whether the test has another arm, without which there is no common level.
    """
    if not isinstance(when, dict):
        raise Refused(f"{where}: must be a table, got {when!r}")
    if "last" in when:
        _check_last(when, where)
        return ""
    if EVALUATIONS in when:
        problem = refusal("Positive", when[EVALUATIONS])
        if problem or len(when) > 1:
            raise Refused(f"{where}.{EVALUATIONS} {problem or 'must stand alone'}")
        return EVALUATIONS
    others = [key for key in when if key in REGIONS and key != "at_most"]
    for key in when:
        if key not in (*KEYS, *REGIONS):
            raise Refused(f"{where}: unknown key {key!r}{suggest(str(key), (*KEYS, EVALUATIONS, 'last'))}")
    if others or ("at_most" in when) == ("equals" in when):
        raise Refused(
            f"{where}: give at_most, for the first milestone at or below it, or equals, for the place "
            "between milestones where it is reached"
        )
    kind = "at_most" if "at_most" in when else "equals"
    if kind == "equals" and when["equals"] == LOWEST:
        if not rivals:
            raise Refused(f"{where}.equals: {LOWEST} needs a test of two arms (versus)")
    elif problem := refusal("float", when[kind]):
        raise Refused(f"{where}.{kind} {problem}" + (f", or {LOWEST}" if kind == "equals" else ""))
    if "divided_by" in when and (problem := refusal("Positive", when["divided_by"])):
        raise Refused(f"{where}.divided_by {problem}")
    return str(when.get("quantity", ""))


def _check_last(when: dict[str, Any], where: str) -> None:
    for key in when:
        if key not in ("last", "take"):
            raise Refused(f"{where}: unknown key {key!r} beside last{suggest(str(key), ('take',))}")
    problem = refusal("Fraction", when["last"])
    if problem or not when["last"]:
        raise Refused(f"{where}.last {problem or 'must be above 0'}")
    if when.get("take", "median") not in TAKES:
        raise Refused(f"{where}.take: must be one of {', '.join(TAKES)}, got {when['take']!r}")


def when_text(when: Mapping[str, Any]) -> str:
    """In words: "train_loss = 0.1"."""
    if "last" in when:
        return f"{when.get('take', 'median')} over the last {100 * when['last']:.4g} % of the steps"
    if EVALUATIONS in when:
        return f"{EVALUATIONS} = {when[EVALUATIONS]:.10g}"
    level = when.get("at_most", when.get("equals"))
    said = "the lowest common level" if level == LOWEST else f"{level:.10g}"
    over = f" / {when['divided_by']:.10g}" if "divided_by" in when else ""
    return f"{when['quantity']}{over} {'≤' if 'at_most' in when else '='} {said}"


def matched(
    table: Table, quantity: str, run: Run, when: Mapping[str, Any], rivals: Sequence[Run] = ()
) -> dict[int, float]:
    """seed -> the quantity where `when` holds; nan for a seed that never gets there."""
    if "last" in when:
        taken = TAKES[when.get("take", "median")]
        return {s: _of_last(rows, when["last"], taken) for s, rows in table.series(quantity, *run).items()}
    by = EVALUATIONS if EVALUATIONS in when else when["quantity"]
    gates, rows = table.series(by, *run), table.series(quantity, *run)
    scale = when.get("divided_by", 1.0)
    if "at_most" in when:
        return {s: _first_below(gates.get(s, []), rows[s], scale * when["at_most"]) for s in rows}
    level = when.get(EVALUATIONS, when.get("equals"))
    if level != LOWEST:
        levels = {s: scale * level for s in rows}
    else:
        levels = lowest_common([gates, *(table.series(by, *rival) for rival in rivals)])
    straight = by == EVALUATIONS
    return {s: _between(gates.get(s, []), rows[s], levels.get(s, math.nan), straight) for s in rows}


def _of_last(rows: list[Row], last: float, taken: Callable[[list[float]], float]) -> float:
    values = [r.value for r in rows if r.step >= (1 - last) * rows[-1].step]
    return taken(values) if all(map(math.isfinite, values)) else math.nan


def lowest_common(gates: Sequence[Series]) -> dict[int, float]:
    """seed -> the lowest level that the runs of all arms reach, for the seeds that all of them have."""
    seeds = set.intersection(*(set(series) for series in gates))
    lows = {s: [_low(series[s]) for series in gates] for s in sorted(seeds)}
    return {s: max(each) if all(map(math.isfinite, each)) else math.nan for s, each in lows.items()}


def _low(rows: list[Row]) -> float:
    """The smallest value from the largest on: where it was before it rose is no level that it has reached."""
    values = [r.value for r in rows if math.isfinite(r.value)]
    return min(values[values.index(max(values)) :]) if values else math.nan


def _first_below(gate: list[Row], rows: list[Row], level: float) -> float:
    steps = [r.step for r in gate if r.value <= level]
    values = [r.value for r in rows if steps and r.step == steps[0]]
    return values[0] if values else math.nan


def _between(gate: list[Row], rows: list[Row], level: float, straight: bool) -> float:
    """The quantity where the gate falls, else rises, to the level; of the milestones that have both."""
    found = {r.step: r.value for r in rows}
    both = [(r.value, found[r.step]) for r in gate if r.step in found]
    if both and both[0][0] == level:
        return both[0][1]
    passages = list(pairwise(both))
    falls = [(a, b) for a, b in passages if a[0] > level >= b[0]]
    rises = [(a, b) for a, b in passages if a[0] < level <= b[0]]
    for (g_a, q_a), (g_b, q_b) in (falls or rises)[:1]:
        if g_b == level:
            return q_b
        logs = not straight and min(g_a, g_b) > 0
        a, b, x = (math.log(v) if logs else v for v in (g_a, g_b, level))
        w = (x - a) / (b - a)
        return (1 - w) * q_a + w * q_b
    return math.nan
