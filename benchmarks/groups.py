"""All groups of the curvature benchmark, in the order of the table."""

from __future__ import annotations

from importlib.util import find_spec

from benchmarks import ascents, eigenvalues, factors, optimizers, penalties, traces
from benchmarks.cases import Group, Method

GROUPS: tuple[Group, ...] = tuple(
    group for kind in (penalties, factors, traces, eigenvalues, ascents, optimizers) for group in kind.GROUPS
)


def chosen(only: str | None) -> list[Group]:
    """Those whose key begins with `only`."""
    found = [group for group in GROUPS if only is None or group.key.startswith(only)]
    if not found:
        raise SystemExit(f"no group is called {only!r}; there are: {', '.join(g.key for g in GROUPS)}")
    return found


def missing(method: Method) -> str:
    """Why the method has no figure, or nothing."""
    if method.cannot or method.work is None:
        return method.cannot
    return "not installed" if method.needs and find_spec(method.needs) is None else ""
