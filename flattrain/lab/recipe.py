"""From the keys of a recipe to its cells: arms × grid, each with everything that a run needs.

A cell's spec is plain JSON, so it can be hashed, stored beside its results and sent to a worker.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from flattrain.lab import catalog
from flattrain.lab.claims import Claim, Scope, read_claims
from flattrain.lab.device import DEVICES
from flattrain.lab.figures_spec import FigureSpec, read_figures
from flattrain.lab.spec import TRAIN, cell_spec, need, need_one_of, need_precision
from flattrain.ranges import Refused, suggest

ARM_KEYS = (
    "problem", "model", "rule", "penalties", "train", "step_size", "average", "precision", "grid"
)  # fmt: skip
NAMED = (
    "dataset",
    "model",
    "rule",
    "step_size",
    "average",
)  # tables with exactly one name: another name replaces it


@dataclass(frozen=True)
class Cell:
    """One arm at one grid point, for all seeds."""

    arm: str
    point: dict[str, Any]
    spec: dict[str, Any]

    @property
    def label(self) -> str:
        return " ".join([self.arm, *(f"{k}={v}" for k, v in self.point.items())])

    @property
    def key(self) -> str:
        return digest([self.arm, self.point, self.spec, code_digest()])

    @property
    def steps(self) -> int:
        return int(self.spec["train"]["steps"])


@dataclass(frozen=True)
class Recipe:
    """A checked recipe."""

    name: str
    title: str
    question: str
    paper: str
    seeds: int
    axes: tuple[str, ...]
    cells: tuple[Cell, ...]
    claims: tuple[Claim, ...]
    figures: tuple[FigureSpec, ...]
    raw: dict[str, Any]

    @property
    def key(self) -> str:
        """The trial's identity: cells, claims and the code that measures them."""
        return digest([self.name, [c.key for c in self.cells], self.raw["claims"]])


def digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@lru_cache(maxsize=1)
def code_digest() -> str:
    """A hash of the code that produces numbers, so that old cells are not taken for new ones."""
    package = Path(__file__).resolve().parent.parent
    parts = [package / p for p in ("core", "problems", "measures", "rules", "training")]
    files = sorted(f for p in parts for f in p.rglob("*.py"))
    return digest([f.read_text(encoding="utf-8") for f in [*files, Path(__file__).with_name("run.py")]])


def read(name: str, raw: dict[str, Any]) -> Recipe:
    """Check every key and value of a composed recipe."""
    need("seeds", raw["seeds"], "Count")
    need("first_seed", raw["first_seed"], "Steps")
    need("jobs", raw["jobs"], "Steps")
    need_precision("precision", raw["precision"])
    # Runs of before there was a choice have neither key.
    need_one_of("device", raw.get("device", "cpu"), DEVICES)
    need("deterministic", raw.get("deterministic", True), "bool")
    need_one_of("backend", raw["backend"], ("auto", "stacked", "eager"))
    if not raw["arms"]:
        raise Refused("arms: a recipe needs at least one arm")
    for key, value in raw["train"].items():
        need(f"train.{key}", value, TRAIN[key])
    dataset = raw["problem"].get("dataset")
    if dataset is not None:
        catalog.choose(catalog.DATASETS, dataset, "problem.dataset")
    axes = _axes(raw["grid"])
    measures = _measures(raw["measures"])
    cells: list[Cell] = []
    for arm, changes in raw["arms"].items():
        cells += _cells(str(arm), changes or {}, raw, axes, measures)
    points = {axis: {c.point[axis] for c in cells if axis in c.point} for axis in axes}
    quantities = tuple(name for part in ("along", "end") for name in _names(measures[part]))
    scope = Scope(tuple(map(str, raw["arms"])), points, quantities)
    return Recipe(
        name,
        raw["title"] or name,
        raw["question"],
        raw["paper"],
        raw["seeds"],
        tuple(axes),
        tuple(cells),
        read_claims(raw["claims"], scope),
        read_figures(raw["figures"], scope),
        raw,
    )


def _axes(grid: Any) -> dict[str, tuple[str, list[Any]]]:
    axes = {}
    for axis, entry in grid.items():
        if not isinstance(entry, dict) or set(entry) != {"key", "values"}:
            raise Refused(f"grid.{axis}: give key (a dotted path) and values (a list)")
        _grid_values(f"grid.{axis}.values", entry["values"])
        axes[str(axis)] = (str(entry["key"]), entry["values"])
    return axes


def _grid_values(where: str, values: Any) -> None:
    if not isinstance(values, list) or not values:
        raise Refused(f"{where} must be a list of values, got {values!r}")
    for value in values:
        if not isinstance(value, str | int | float):
            raise Refused(f"{where}: a grid value is a number, a text or true/false, got {value!r}")


def _measures(spec: Any) -> dict[str, list[Any]]:
    for part in spec:
        if part not in ("along", "end"):
            raise Refused(f"measures: unknown key {part!r}; known: along, end")
    lists = {part: spec.get(part) or [] for part in ("along", "end")}
    seen: set[str] = set()
    for part, entries in lists.items():
        if not isinstance(entries, list):
            raise Refused(f"measures.{part} must be a list, got {entries!r}")
        for k, entry in enumerate(entries):
            name = catalog.choose(catalog.MEASURES, entry, f"measures.{part}[{k}]").name
            if name in seen:
                raise Refused(f"measures.{part}[{k}]: {name} is measured twice")
            seen.add(name)
    return lists


def _names(entries: list[Any]) -> list[str]:
    return [e if isinstance(e, str) else next(iter(e)) for e in entries]


def _cells(
    arm: str,
    changes: Any,
    raw: dict[str, Any],
    axes: dict[str, tuple[str, list[Any]]],
    measures: dict[str, list[Any]],
) -> list[Cell]:
    if not isinstance(changes, dict):
        raise Refused(f"arms.{arm}: must be a table, got {changes!r}")
    for key in changes:
        if key not in ARM_KEYS:
            raise Refused(f"arms.{arm}: unknown key {key!r}{suggest(key, ARM_KEYS)}")
    own = changes.get("grid") or {}
    if not isinstance(own, dict):
        raise Refused(f"arms.{arm}.grid: must be a table of axis and values, got {own!r}")
    for axis, values in own.items():
        if axis not in axes:
            raise Refused(f"arms.{arm}.grid: unknown axis {axis!r}{suggest(str(axis), axes)}")
        _grid_values(f"arms.{arm}.grid.{axis}", values)
    ranges = {axis: own.get(axis, default) for axis, (_, default) in axes.items()}
    base = {key: raw[key] for key in ARM_KEYS if key != "grid"}
    merged = merge(base, {k: v for k, v in changes.items() if k != "grid"})
    out = []
    for combination in itertools.product(*ranges.values()):
        point = dict(zip(ranges, combination, strict=True))
        settings = copy.deepcopy(merged)
        for axis, value in point.items():
            _set(settings, axes[axis][0], value, f"grid.{axis}.key")
        spec = cell_spec(settings, arm) | {
            "measures": measures,
            "seeds": raw["seeds"],
            "first_seed": raw["first_seed"],
            "backend": raw["backend"],
        }
        spec |= _elsewhere(raw)
        out.append(Cell(arm, point, spec))
    return out


def _elsewhere(raw: dict[str, Any]) -> dict[str, Any]:
    """What sets a trial apart from a deterministic one on the CPU, which keeps its identity."""
    usual = {"device": ("auto", "cpu"), "deterministic": (True,)}
    return {key: raw[key] for key, values in usual.items() if raw.get(key, values[0]) not in values}


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


def _set(settings: dict[str, Any], path: str, value: Any, where: str) -> None:
    node: Any = settings
    *parents, last = path.split(".")
    for part in parents:
        if not isinstance(node, dict) or not isinstance(node.get(part), dict):
            known = node if isinstance(node, dict) else {}
            raise Refused(f"{where}: there is no table for {path!r}{suggest(part, known)}")
        node = node[part]
    node[last] = value
