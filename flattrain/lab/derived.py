"""Quantities made of two others, run by run and step by step. No torch here.

derived:
  gap:       {difference: [test_loss, train_loss]}
  per_width: {ratio: [top_eigenvalue, output_curvature]}

They stand in the table beside what was measured, where both parts have a value at the same step. A part may
be a derived quantity that stands above. Errors are combined as if the two parts erred independently, to
first order; a quotient by 0 is nan.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from flattrain.lab.results import Row
from flattrain.ranges import Refused, suggest

SIGNS = {"difference": "−", "ratio": "/"}


class Derived(NamedTuple):
    """name = one (kind) other."""

    name: str
    kind: str
    one: str
    other: str

    @property
    def definition(self) -> str:
        return f"{self.one} {SIGNS[self.kind]} {self.other}, at the same step of the same run"


def read_derived(table: Any, measured: Sequence[str]) -> tuple[Derived, ...]:
    """Check each entry against what is measured and what stands above it."""
    out: list[Derived] = []
    for name, spec in (table or {}).items():
        where, known = f"derived.{name}", (*measured, *(d.name for d in out))
        if name in measured:
            raise Refused(f"{where}: there is a measured quantity of that name")
        kind = next(iter(spec)) if isinstance(spec, dict) and len(spec) == 1 else None
        if kind not in SIGNS:
            raise Refused(f"{where}: give one of {', '.join(SIGNS)}, each of two quantities; got {spec!r}")
        parts = spec[kind]
        if not isinstance(parts, list) or len(parts) != 2:
            raise Refused(f"{where}.{kind}: must be a list of two quantities, got {parts!r}")
        for part in parts:
            if not isinstance(part, str) or part not in known:
                raise Refused(f"{where}.{kind}: {part!r} is not measured{suggest(str(part), known)}")
        out.append(Derived(str(name), kind, *parts))
    return tuple(out)


def with_derived(rows: Iterable[Row], derived: Sequence[Derived]) -> list[Row]:
    """The rows, and after those of a run at a step what is derived from them."""
    out, found = [], {}
    for row in rows:
        out.append(row)
        found[row.arm, row.point, row.seed, row.step, row.quantity] = row
    for spec in derived:
        for row in [r for r in out if r.quantity == spec.one]:
            other = found.get((row.arm, row.point, row.seed, row.step, spec.other))
            if other is not None:
                made = _made(spec, row, other)
                out.append(made)
                found[made.arm, made.point, made.seed, made.step, made.quantity] = made
    return out


def _made(spec: Derived, one: Row, other: Row) -> Row:
    a, b, ea, eb = one.value, other.value, one.standard_error, other.standard_error
    if spec.kind == "difference":
        value, error = a - b, math.hypot(ea, eb)
    elif b == 0:
        value, error = math.nan, math.nan
    else:
        value, error = a / b, math.hypot(ea / b, a * eb / b**2)
    return Row(one.arm, one.point, one.seed, one.step, spec.name, value, error)
