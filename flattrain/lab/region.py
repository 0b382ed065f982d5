"""Regions of real numbers: where an estimate is predicted, where it refutes, what a condition asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from flattrain.ranges import Refused, refusal, suggest

REGIONS = ("at_most", "at_least", "above", "below", "between")
_SIGNS = {"at_most": "≤", "at_least": "≥", "above": ">", "below": "<"}


class Region(NamedTuple):
    """at_most, at_least, above, below a number, or between two (ends included). Always an interval."""

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

    def meets(self, low: float, high: float) -> bool:
        """Whether [low, high] has a point in the region."""
        if self.kind == "between":
            return low <= self.bound[1] and high >= self.bound[0]
        return self.holds(low if self.kind in ("at_most", "below") else high)

    def gap(self, value: float) -> tuple[float | None, float | None]:
        """(below, above) for a value outside: the edge that an interval must stay above, or below."""
        low, high = self.bound if self.kind == "between" else (self.bound, self.bound)
        if self.kind in ("at_most", "below") or (self.kind == "between" and value > high):
            return float(high), None
        return None, float(low)

    @property
    def ends(self) -> tuple[float | None, float | None]:
        """(low, high), None where there is no end."""
        if self.kind == "between":
            return float(self.bound[0]), float(self.bound[1])
        return (None, float(self.bound)) if self.kind in ("at_most", "below") else (float(self.bound), None)

    def __str__(self) -> str:
        if self.kind == "between":
            return f"{self.bound[0]:.10g} to {self.bound[1]:.10g}"
        return f"{_SIGNS[self.kind]} {self.bound:.10g}"


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


def condition(spec: Mapping[str, Any]) -> Region:
    """The region among the keys of a condition or of a share."""
    return Region(*next((k, spec[k]) for k in REGIONS if k in spec))
