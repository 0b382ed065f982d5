"""How a correlation moves: when its variables are others, and along an axis. Jackknife over seeds.

correlation_change    the coefficient of x and y over all runs, less that of `minus: [x, y]`. Lists of x and y
                      put every run into the pool once with each pair: with the head of each network
                      multiplied by each of several constants, the pool is that of constants independent
                      of the networks, free of the chance of drawing one for each
correlation_slope     the coefficient within each level of an axis, or of arms that stand for numbers, and the
                      least-squares slope of these over the levels

coefficient: kendall (τ-b, the default) or pearson.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flattrain.lab.results import Table
from flattrain.lab.scope import ARM
from flattrain.lab.selection import Runs, Void, runs
from flattrain.lab.statistics.interval import Interval, Values
from flattrain.lab.statistics.jackknife import jackknife
from flattrain.lab.statistics.kendall import kendall
from flattrain.lab.statistics.pearson import pearson
from flattrain.lab.statistics.seeds import Seeds
from flattrain.lab.statistics.slope import slopes

Coefficient = Callable[[Values, Values], float]


def correlation_change(spec: dict[str, Any], table: Table, level: float) -> Interval:
    """The coefficient of the pooled pairs less that of the pair `minus`."""
    coefficient, after = _coefficient(spec), list(zip(_several(spec["x"]), _several(spec["y"]), strict=True))
    before = [tuple(spec["minus"])]
    names = dict.fromkeys(name for pair in (*after, *before) for name in pair)
    seen = runs(table, spec, list(names))

    def of(pairs: Sequence[tuple[str, ...]], seeds: Seeds) -> float:
        x, y = (np.concatenate([seen.values[pair[k]][:, seeds].ravel() for pair in pairs]) for k in (0, 1))
        return coefficient(x, y)

    found = jackknife(lambda seeds: of(after, seeds) - of(before, seeds), seen.n, level)
    return found.within(-2, 2)


def correlation_slope(spec: dict[str, Any], table: Table, level: float) -> Interval:
    """The slope over the levels of the coefficient within each of them."""
    coefficient, over = _coefficient(spec), spec["over"]
    named = isinstance(over, dict)
    seen = runs(table, {**spec, "arms": list(over)} if named else spec, [spec["x"], spec["y"]])
    at = [float(over[s[ARM]] if named else s[over]) for s in _having(seen, over, named)]
    levels = sorted(set(at))
    if len(levels) < 2:
        raise Void("the runs are all at one level: there is no slope")
    inside = [np.array([a == level_ for a in at]) for level_ in levels]

    def statistic(seeds: Seeds) -> float:
        x, y = (seen.values[spec[key]][:, seeds] for key in "xy")
        each = [coefficient(x[mine].ravel(), y[mine].ravel()) for mine in inside]
        return float(slopes(np.array(levels)[:, None], np.array(each)[:, None])[0])

    return jackknife(statistic, seen.n, level)


def _having(seen: Runs, over: Any, named: bool) -> tuple[dict[str, str], ...]:
    if not named and any(over not in s for s in seen.settings):
        raise Void(f"not all of these runs have a value of {over}")
    return seen.settings


def _coefficient(spec: dict[str, Any]) -> Coefficient:
    return pearson if spec.get("coefficient") == "pearson" else kendall


def _several(name: Any) -> list[str]:
    return list(name) if isinstance(name, list) else [name]
