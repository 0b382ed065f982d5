"""The table of results: one row per arm, grid point, seed, step and quantity. No torch here.

    arm, <axes…>, seed, step, quantity, value, standard_error

Numbers are written so that they read back to the same bits. The standard error is 0 for what is computed
exactly and nan where a single draw gives none.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flattrain.ranges import Refused

FIXED = ("seed", "step", "quantity", "value", "standard_error")


@dataclass(frozen=True)
class Row:
    arm: str
    point: tuple[tuple[str, str], ...]  # axis and value, as text
    seed: int
    step: int
    quantity: str
    value: float
    standard_error: float


class Table:
    """Rows with the few questions that claims and figures ask."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = list(rows)
        self._series: dict[tuple[str, tuple[tuple[str, str], ...], str], dict[int, list[Row]]] = {}
        for row in self.rows:
            seeds = self._series.setdefault((row.arm, row.point, row.quantity), {})
            seeds.setdefault(row.seed, []).append(row)
        for seeds in self._series.values():
            for rows_ in seeds.values():
                rows_.sort(key=lambda r: r.step)

    def points(self, arm: str, at: dict[str, Any] | None = None) -> list[tuple[tuple[str, str], ...]]:
        """The grid points of an arm that agree with `at`, in the order of the table."""
        want = {str(k): str(v) for k, v in (at or {}).items()}
        found = dict.fromkeys(point for a, point, _ in self._series if a == arm)
        return [p for p in found if want.items() <= dict(p).items()]

    def series(self, quantity: str, arm: str, point: tuple[tuple[str, str], ...]) -> dict[int, list[Row]]:
        """seed -> rows by step."""
        return self._series.get((arm, point, quantity), {})

    def final(self, quantity: str, arm: str, point: tuple[tuple[str, str], ...]) -> dict[int, float]:
        """seed -> the value at the last step."""
        return {s: rows[-1].value for s, rows in self.series(quantity, arm, point).items()}


def write(rows: Iterable[Row], axes: tuple[str, ...]) -> str:
    """The table as CSV text, in the order given."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["arm", *axes, *FIXED])
    for row in rows:
        point = dict(row.point)
        writer.writerow(
            [
                row.arm,
                *(point.get(axis, "") for axis in axes),
                row.seed,
                row.step,
                row.quantity,
                repr(row.value),
                repr(row.standard_error),
            ]
        )
    return out.getvalue()


def read(path: Path) -> Table:
    """The table of a run folder; a damaged one is refused with the line."""
    try:
        lines = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"))))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise Refused(f"{path}: not a readable table ({error})") from None
    if not lines or lines[0][:1] != ["arm"] or tuple(lines[0][-5:]) != FIXED:
        raise Refused(f"{path}: not a table of results (its first line is not the expected header)")
    axes = lines[0][1:-5]
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        try:
            arm, *values = line
            seed, step, quantity, value, error_ = values[len(axes) :]
            point = tuple((a, v) for a, v in zip(axes, values, strict=False) if v != "")
            rows.append(Row(arm, point, int(seed), int(step), quantity, float(value), float(error_)))
        except ValueError:
            raise Refused(f"{path}: line {number} is damaged; run the recipe again") from None
    return Table(rows)
