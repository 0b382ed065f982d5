"""From the arms of a recipe to cells, one per grid point, and to the candidates of those that are tuned."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

from flattrain.lab import catalog
from flattrain.lab.cell import Cell, Tuning
from flattrain.lab.grid import Axis, of_arm, put
from flattrain.lab.spec import MOST, cell_spec, need_validation
from flattrain.lab.stopping import read_stop
from flattrain.lab.tune_spec import BY, TuneSpec, read_tune
from flattrain.ranges import Refused, suggest

ARM_KEYS = (
    "problem", "model", "rule", "penalties", "train", "step_size", "average", "precision", "tune", "grid",
    "measures",
)  # fmt: skip
NAMED = (
    "dataset",
    "model",
    "rule",
    "step_size",
    "average",
)  # tables with exactly one name: another name replaces it


def names(entries: list[Any]) -> list[str]:
    """Of the measures in a list."""
    return [e if isinstance(e, str) else next(iter(e)) for e in entries]


def measured(spec: Any, where: str) -> dict[str, Any]:
    """The measures along the way, at the end and where training would stop, checked; each is named once."""
    if not isinstance(spec, dict):
        raise Refused(f"{where} must be a table of along and end, got {spec!r}")
    for part in spec:
        if part not in ("along", "end", "stop"):
            raise Refused(f"{where}: unknown key {part!r}; known: along, end, stop")
    lists = {part: spec.get(part) or [] for part in ("along", "end")}
    seen: set[str] = set()
    for part, entries in lists.items():
        _once(entries, f"{where}.{part}", seen)
    stop = spec.get("stop")
    if stop is None:
        return lists
    last = read_stop(stop, names(lists["along"]), lists["end"], f"{where}.stop")["measures"]
    _once(last, f"{where}.stop.measures", seen)
    return {**lists, "stop": stop}


def _once(entries: Any, where: str, seen: set[str]) -> None:
    """A list of measures, none of which is seen before."""
    if not isinstance(entries, list):
        raise Refused(f"{where} must be a list, got {entries!r}")
    for k, entry in enumerate(entries):
        name, _ = catalog.measured(entry, f"{where}[{k}]")
        if name in seen:
            raise Refused(
                f"{where}[{k}]: {name} is measured twice; give one of them a name of its own, "
                f"{{NAME: {{{name}: {{…}}}}}}"
            )
        seen.add(name)


def quantities(measures: dict[str, Any]) -> list[str]:
    """What `measured` lets be measured, by name."""
    return names([*measures["along"], *measures["end"], *(measures.get("stop") or {}).get("measures", [])])


def arm_cells(
    name: str,
    arm: str,
    changes: Any,
    raw: dict[str, Any],
    axes: dict[str, Axis],
) -> tuple[list[Cell], list[Tuning]]:
    """An arm's cells, and how they are tuned."""
    if not isinstance(changes, dict):
        raise Refused(f"arms.{arm}: must be a table, got {changes!r}")
    for key in changes:
        if key not in ARM_KEYS:
            raise Refused(f"arms.{arm}: unknown key {key!r}{suggest(key, ARM_KEYS)}")
    axes = of_arm(changes.get("grid") or {}, axes, f"arms.{arm}.grid")
    ranges = {axis: entry.values for axis, entry in axes.items()}
    # Runs of before there was tuning have no such key.
    base = {"tune": None} | {key: raw[key] for key in ARM_KEYS if key in raw and key != "grid"}
    merged = merge(base, {k: v for k, v in changes.items() if k != "grid"})
    seeds = range(raw["first_seed"], raw["first_seed"] + raw["seeds"])
    keys = {key: axis for axis, entry in axes.items() for key in entry.keys}
    tune = read_tune(merged["tune"], f"arms.{arm}.tune", name, keys, seeds)
    many = math.prod(len(values) for values in ranges.values())
    for what, count in (("cells", many), ("trials", many * len(tune.candidates) if tune else 0)):
        if count > MOST:
            raise Refused(f"grid: arm {arm} has {count:,} {what}, at most {MOST:,}")
    cells, tunings = [], []
    for combination in itertools.product(*ranges.values()):
        point = dict(zip(ranges, combination, strict=True))
        settings = copy.deepcopy(merged)
        for axis, value in point.items():
            for key in axes[axis].keys:
                put(settings, key, value, f"grid.{axis}.key")
        measures = measured(settings["measures"], f"arms.{arm}.measures")
        finals, trials = [], []
        for setting in tune.candidates if tune else ({},):
            tried = copy.deepcopy(settings)
            for path, value in setting.items():
                put(tried, path, value, f"arms.{arm}.tune.over")
            own = {"measures": measures, "seeds": raw["seeds"], "first_seed": raw["first_seed"]}
            spec = cell_spec(tried, arm) | own | {"backend": raw["backend"]} | _elsewhere(raw)
            need_validation(spec, quantities(measures), "measures")
            finals.append(Cell(arm, point, spec))
            if tune:
                need_validation(spec, list(BY), f"arms.{arm}.tune")
                tries = ", ".join(f"{path}={value}" for path, value in setting.items())
                trials.append(Cell(arm, point, spec | _of_a_trial(tune, spec), f"trying {tries}"))
        cells.append(finals[0])
        if tune:
            tunings.append(Tuning(tune, tuple(trials), tuple(finals)))
    return cells, tunings


def _elsewhere(raw: dict[str, Any]) -> dict[str, Any]:
    """What sets a trial apart from a deterministic one on the CPU, which keeps its identity."""
    usual = {"device": ("auto", "cpu"), "deterministic": (True,)}
    return {key: raw[key] for key, values in usual.items() if raw.get(key, values[0]) not in values}


def _of_a_trial(tune: TuneSpec, spec: dict[str, Any]) -> dict[str, Any]:
    """What a trial does not share with the final cell: seeds of its own, and validation examples alone."""
    return {
        "measures": {"along": [], "end": list(BY)},
        "seeds": tune.seeds,
        "first_seed": tune.first_seed,
        "train": spec["train"] | {"milestones": 0},
    }


def merge(base: Any, changes: Any, name: str = "") -> Any:
    """`changes` over `base`, table by table; another name in a one-name table replaces the whole table."""
    if not (isinstance(base, dict) and isinstance(changes, dict)):
        return changes
    if name in NAMED and set(base) != set(changes):
        return changes
    out = dict(base)
    for key, value in changes.items():
        out[key] = merge(base[key], value, str(key)) if key in base else value
    return out
