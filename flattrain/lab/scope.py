"""What claims and figures may name: the arms, axes and quantities of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from flattrain.ranges import Refused, suggest

ARM = "arm"  # the arms of a recipe, where an axis is asked for


class Scope(NamedTuple):
    """Arms, the values of each axis, and the quantities that are measured."""

    arms: tuple[str, ...]
    points: Mapping[str, set[Any]]
    quantities: tuple[str, ...]

    def need_quantity(self, name: Any, where: str) -> None:
        if not isinstance(name, str) or name not in self.quantities:
            raise Refused(f"{where}: {name!r} is not measured{suggest(str(name), self.quantities)}")

    def need_variable(self, name: Any, where: str) -> None:
        """A quantity, or an axis whose values are numbers."""
        if not isinstance(name, str) or name not in (*self.quantities, *self.points):
            known = (*self.quantities, *self.points)
            raise Refused(f"{where}: {name!r} is neither measured nor an axis{suggest(str(name), known)}")
        if name not in self.quantities:
            for value in self.points[name]:
                if isinstance(value, bool) or not isinstance(value, int | float):
                    raise Refused(f"{where}: the axis {name!r} has {value!r}, which is not a number")

    def need_arm(self, name: Any, where: str) -> None:
        if not isinstance(name, str) or name not in self.arms:
            raise Refused(f"{where}: unknown arm {name!r}{suggest(str(name), self.arms)}")

    def need_arms(self, names: Any, where: str) -> None:
        if not isinstance(names, list) or not names:
            raise Refused(f"{where}: must be a list of arms, got {names!r}")
        for name in names:
            self.need_arm(name, where)
        if len(set(names)) < len(names):
            raise Refused(f"{where}: an arm is named twice")

    def need_axis(self, name: Any, where: str) -> None:
        if not isinstance(name, str) or name not in self.points:
            raise Refused(f"{where}: unknown axis {name!r}{suggest(str(name), self.points)}")

    def need_axes(self, names: Any, where: str) -> None:
        """A list of axes, the arms among them as `arm`."""
        if not isinstance(names, list) or not names:
            raise Refused(f"{where}: must be a list of axes, got {names!r}")
        for name in names:
            if name != ARM:
                self.need_axis(name, where)

    def need_point(self, at: Any, where: str) -> None:
        if at is None:
            return
        if not isinstance(at, dict):
            raise Refused(f"{where}: must be a table of axis and value, got {at!r}")
        for axis, value in at.items():
            self.need_axis(axis, where)
            self.need_value(axis, value, f"{where}.{axis}")

    def need_value(self, axis: str, value: Any, where: str) -> None:
        if value not in list(self.points[axis]):
            raise Refused(
                f"{where}: {value!r} is not on the grid" + suggest(str(value), map(str, self.points[axis]))
            )
