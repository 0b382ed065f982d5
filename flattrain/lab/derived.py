"""Quantities made of two others, run by run and step by step. No torch here.

derived:
  gap:       {difference: [test_loss, train_loss]}
  per_width: {ratio: [top_eigenvalue, output_curvature]}
  off_by:    {factor: [gap_estimate, gap]}               max(a/b, b/a), nan where the signs differ
  inverse_n: {ratio: [1, n]}                             an axis of the grid, and a number

They stand in the table beside what was measured, where both parts have a value at the same step. A part may
be a derived quantity that stands above, an axis whose values are numbers, or a number. Errors are combined as
if the two parts erred independently, to first order; a quotient by 0 is nan.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from flattrain.lab.results import Row
from flattrain.ranges import Refused, suggest

WORDS = {
    "difference": "{} − {}",
    "ratio": "{} / {}",
    "factor": "the factor between {} and {}, whichever is larger",
}
Part = str | float
Found = tuple[float, float]  # a value with its standard error


class Derived(NamedTuple):
    """name = kind(one, other)."""

    name: str
    kind: str
    one: Part
    other: Part

    @property
    def definition(self) -> str:
        return f"{WORDS[self.kind].format(self.one, self.other)}, at the same step of the same run"


def read_derived(
    table: Any, measured: Sequence[str], axes: Mapping[str, Iterable[Any]] | None = None
) -> tuple[Derived, ...]:
    """Check each entry against what is measured, what stands above it, and the axes with their values."""
    numeric = [axis for axis, values in (axes or {}).items() if all(map(_is_number, values))]
    out: list[Derived] = []
    for name, spec in (table or {}).items():
        where, known = f"derived.{name}", (*measured, *(d.name for d in out), *numeric)
        if name in measured:
            raise Refused(f"{where}: there is a measured quantity of that name")
        if name in (axes or {}):
            raise Refused(f"{where}: there is an axis of that name")
        kind = next(iter(spec)) if isinstance(spec, dict) and len(spec) == 1 else None
        if kind not in WORDS:
            raise Refused(f"{where}: give one of {', '.join(WORDS)}, each of two quantities; got {spec!r}")
        parts = spec[kind]
        if not isinstance(parts, list) or len(parts) != 2:
            raise Refused(f"{where}.{kind}: must be a list of two quantities, got {parts!r}")
        for part in parts:
            if not _is_number(part) and part not in known:
                raise Refused(f"{where}.{kind}: {part!r} is not measured{suggest(str(part), known)}")
        if all(map(_is_number, parts)):
            raise Refused(f"{where}.{kind}: both are numbers; one must be a quantity or an axis")
        out.append(Derived(str(name), kind, *parts))
    return tuple(out)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def with_derived(rows: Iterable[Row], derived: Sequence[Derived]) -> list[Row]:
    """The rows, and after them what is derived from those of a run at a step."""
    out = list(rows)
    found: dict[tuple[Any, ...], dict[str, Found]] = {}
    for row in out:
        place = (row.arm, row.point, row.seed, row.step)
        found.setdefault(place, {})[row.quantity] = (row.value, row.standard_error)
    for spec in derived:
        for place, there in found.items():
            parts = [_part(part, dict(place[1]), there) for part in (spec.one, spec.other)]
            if None not in parts:
                there[spec.name] = _made(spec.kind, *(p for p in parts if p is not None))
                out.append(Row(*place, spec.name, *there[spec.name]))
    return out


def _part(part: Part, point: Mapping[str, str], there: Mapping[str, Found]) -> Found | None:
    """A number, a quantity of the run at the step, or the axis' value; None where the run has neither."""
    if not isinstance(part, str):
        return float(part), 0.0
    if part in there:
        return there[part]
    return (float(point[part]), 0.0) if part in point else None


def _made(kind: str, one: Found, other: Found) -> Found:
    (a, ea), (b, eb) = one, other
    if kind == "difference":
        return a - b, math.hypot(ea, eb)
    if b == 0:
        return math.nan, math.nan
    ratio, error = a / b, math.hypot(ea / b, a * eb / b**2)
    if kind == "ratio":
        return ratio, error
    if not ratio > 0:
        return math.nan, math.nan
    return max(ratio, 1 / ratio), error if ratio >= 1 else error / ratio**2
