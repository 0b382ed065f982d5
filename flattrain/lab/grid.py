"""The axes of a grid: which settings each one sets, and to what.

    grid:
      n: {key: problem.dataset.digits.train, values: [100, 300]}
      decay: {key: [train.weight_decay, measures.end.rank_at_decay.fisher_rank.lam], values: [0.001, 0.01]}

With several keys the same value goes to all of them. A key is a dotted path; in a list a part of it is a
place, or the name of an entry (a measure's own name, say). An arm takes values of its own, and where its
settings lie elsewhere keys of its own: `grid: {n: [50]}`, `grid: {n: {key: problem.dataset.mnist.train}}`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from flattrain.ranges import Refused, suggest

PARTS = ("key", "values")


class Axis(NamedTuple):
    """All of `keys` are set to each of the `values` in turn."""

    keys: tuple[str, ...]
    values: list[Any]


def read_axes(grid: Any) -> dict[str, Axis]:
    """The axes of a recipe; each has key and values."""
    axes = {}
    for axis, entry in grid.items():
        if not isinstance(entry, dict) or set(entry) != set(PARTS):
            raise Refused(f"grid.{axis}: give key (a dotted path, or a list of them) and values (a list)")
        axes[str(axis)] = Axis(
            _keys(entry["key"], f"grid.{axis}.key"), _values(entry["values"], f"grid.{axis}.values")
        )
    return axes


def of_arm(changes: Any, axes: dict[str, Axis], where: str) -> dict[str, Axis]:
    """The axes with what the arm changes: a list of values, a table of key, values or both; null

    where the axis is not one of the arm's.
    """
    if not isinstance(changes, dict):
        raise Refused(f"{where}: must be a table of axis and values, got {changes!r}")
    out = dict(axes)
    for axis, entry in changes.items():
        if axis not in axes:
            raise Refused(f"{where}: unknown axis {axis!r}{suggest(str(axis), axes)}")
        at = f"{where}.{axis}"
        if entry is None:
            del out[axis]
            continue
        if not isinstance(entry, dict):
            out[axis] = axes[axis]._replace(values=_values(entry, at))
            continue
        for part in entry:
            if part not in PARTS:
                raise Refused(f"{at}: unknown key {part!r}{suggest(str(part), PARTS)}")
        if "key" in entry:
            out[axis] = out[axis]._replace(keys=_keys(entry["key"], f"{at}.key"))
        if "values" in entry:
            out[axis] = out[axis]._replace(values=_values(entry["values"], f"{at}.values"))
    return out


def _keys(given: Any, where: str) -> tuple[str, ...]:
    keys = given if isinstance(given, list) else [given]
    if not keys or not all(isinstance(key, str) for key in keys):
        raise Refused(f"{where} must be a dotted path or a list of them, got {given!r}")
    return tuple(keys)


def _values(values: Any, where: str) -> list[Any]:
    if not isinstance(values, list) or not values:
        raise Refused(f"{where} must be a list of values, got {values!r}")
    for value in values:
        if not isinstance(value, str | int | float):
            raise Refused(f"{where}: a grid value is a number, a text or true/false, got {value!r}")
    return values


def put(settings: dict[str, Any], path: str, value: Any, where: str) -> None:
    """Set a dotted path; a part of it in a list is a place, or the name of an entry."""
    *parents, last = path.split(".")
    node: Any = settings
    for part in parents:
        inner = _inside(node, part)
        if not isinstance(inner, dict | list):
            known = _names(node) if isinstance(node, dict | list) else []
            raise Refused(f"{where}: there is no table for {path!r}{suggest(part, known)}")
        node = inner
    if isinstance(node, list) and last.isdecimal() and int(last) < len(node):
        if isinstance(node[int(last)], dict):
            raise Refused(f"{where}: {path!r} is not a setting; name the setting there as well")
        node[int(last)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise Refused(
            f"{where}: {path!r} is not a setting; name the place in the list, and the setting there"
        )


def _inside(node: Any, part: str) -> Any:
    if isinstance(node, dict):
        return node.get(part)
    if part.isdecimal():
        return node[int(part)] if int(part) < len(node) else None
    return next((e[part] for e in node if isinstance(e, dict) and list(e) == [part]), None)


def _names(node: Any) -> list[str]:
    if isinstance(node, dict):
        return [str(key) for key in node]
    return [str(next(iter(e))) for e in node if isinstance(e, dict) and len(e) == 1]
