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
from flattrain.lab.figures_spec import FigureSpec, read_figures
from flattrain.ranges import Refused, refusal, suggest

ARM_KEYS = ("problem", "model", "rule", "penalties", "train", "precision", "grid")
NAMED = ("dataset", "model", "rule")  # tables with exactly one name: another name replaces it


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
    _whole("seeds", raw["seeds"], "Count")
    _whole("first_seed", raw["first_seed"], "Steps")
    _whole("jobs", raw["jobs"], "Steps")
    _one_of("precision", raw["precision"], ("float32", "float64"))
    _one_of("backend", raw["backend"], ("auto", "stacked"))
    if not raw["arms"]:
        raise Refused("arms: a recipe needs at least one arm")
    for key, value in raw["train"].items():
        _whole(f"train.{key}", value, TRAIN[key])
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


def _whole(where: str, value: Any, annotation: str) -> None:
    problem = refusal(annotation, value)
    if problem:
        raise Refused(f"{where} {problem}")


def _one_of(where: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise Refused(f"{where} must be one of {', '.join(allowed)}, got {value!r}")


def _axes(grid: Any) -> dict[str, tuple[str, list[Any]]]:
    axes = {}
    for axis, entry in grid.items():
        if not isinstance(entry, dict) or set(entry) != {"key", "values"}:
            raise Refused(f"grid.{axis}: give key (a dotted path) and values (a list)")
        if not isinstance(entry["values"], list) or not entry["values"]:
            raise Refused(f"grid.{axis}.values must be a list of values, got {entry['values']!r}")
        axes[str(axis)] = (str(entry["key"]), entry["values"])
    return axes


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
    for axis in own:
        if axis not in axes:
            raise Refused(f"arms.{arm}.grid: unknown axis {axis!r}{suggest(axis, axes)}")
    values = {axis: own.get(axis, default) for axis, (_, default) in axes.items()}
    base = {key: raw[key] for key in ARM_KEYS if key != "grid"}
    merged = merge(base, {k: v for k, v in changes.items() if k != "grid"})
    out = []
    for combination in itertools.product(*values.values()):
        point = dict(zip(values, combination, strict=True))
        settings = copy.deepcopy(merged)
        for axis, value in point.items():
            _set(settings, axes[axis][0], value, f"grid.{axis}.key")
        spec = _spec(settings, arm) | {
            "measures": measures,
            "seeds": raw["seeds"],
            "first_seed": raw["first_seed"],
            "backend": raw["backend"],
        }
        out.append(Cell(arm, point, spec))
    return out


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


def _spec(settings: dict[str, Any], arm: str) -> dict[str, Any]:
    problem = settings["problem"]
    for key in problem:
        if key not in ("dataset", "loss"):
            raise Refused(f"problem: unknown key {key!r}{suggest(key, ('dataset', 'loss'))}")
    dataset = catalog.choose(catalog.DATASETS, problem.get("dataset"), "problem.dataset")
    _one_of("problem.loss", problem.get("loss"), catalog.LOSSES)
    _one_of(f"arms.{arm}.precision", settings["precision"], ("float32", "float64"))
    where = f"arms.{arm}"
    return {
        "dataset": _plain(dataset),
        "loss": problem["loss"],
        "model": _plain(catalog.choose(catalog.MODELS, settings["model"], f"{where}.model")),
        "rule": _plain(catalog.choose(catalog.RULES, settings["rule"], f"{where}.rule")),
        "penalties": _penalties(settings["penalties"] or {}, where),
        "train": _train(settings["train"], dataset, where),
        "precision": settings["precision"],
    }


def _plain(choice: catalog.Choice) -> dict[str, Any]:
    return {choice.name: choice.arguments}


def _penalties(table: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(table, dict):
        raise Refused(f"{where}.penalties: must be a table of measures, got {table!r}")
    out = []
    for name, arguments in table.items():
        at = f"{where}.penalties.{name}"
        arguments = dict(arguments) if isinstance(arguments, dict) else {}
        if "weight" not in arguments:
            raise Refused(f"{at}: weight is missing; give the factor λ of the penalty")
        _whole(f"{at}.weight", arguments["weight"], "NonNegative")
        weight = arguments.pop("weight")
        choice = catalog.choose(catalog.PENALTIES, {name: arguments}, f"{where}.penalties")
        out.append({"measure": _plain(choice), "weight": weight})
    return out


TRAIN = {
    "optimizer": "str",
    "lr": "Positive",
    "momentum": "Fraction | None",
    "weight_decay": "NonNegative | None",
    "batch_size": "Count",
    "steps": "Steps | None",
    "epochs": "Steps | None",
    "milestones": "Steps",
    "spacing": "Literal['log', 'linear']",
}


def _train(train: dict[str, Any], dataset: catalog.Choice, where: str) -> dict[str, Any]:
    for key, value in train.items():
        if key not in TRAIN:
            raise Refused(f"{where}.train: unknown key {key!r}{suggest(key, TRAIN)}")
        _whole(f"{where}.train.{key}", value, TRAIN[key])
    settings = {k: train[k] for k in ("lr", "momentum", "weight_decay") if train.get(k) is not None}
    optimizer = catalog.choose(catalog.OPTIMIZERS, {train["optimizer"]: settings}, f"{where}.train")
    examples = dataset.arguments.get("train")
    if (train["steps"] is None) == (train["epochs"] is None):
        raise Refused(f"{where}.train: give either steps or epochs (the other one null)")
    steps = train["steps"]
    if steps is None:
        if examples is None:
            raise Refused(f"{where}.train.epochs: needs the dataset's train size; give it or use steps")
        steps = train["epochs"] * examples // train["batch_size"]
    if examples is not None and train["batch_size"] > examples:
        raise Refused(
            f"{where}.train.batch_size must be at most the {examples} training examples, "
            f"got {train['batch_size']}"
        )
    return {
        "optimizer": _plain(optimizer),
        "batch_size": train["batch_size"],
        "steps": steps,
        "milestones": train["milestones"],
        "spacing": train["spacing"],
    }
