"""From the keys of a recipe to the checked recipe: cells, claims and figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flattrain.lab import catalog
from flattrain.lab.arms import arm_cells, measured, quantities
from flattrain.lab.cell import Cell, Tuning, digest, place
from flattrain.lab.claims import Claim, read_claims, read_correction
from flattrain.lab.derived import Derived, read_derived
from flattrain.lab.device import DEVICES
from flattrain.lab.figures_spec import FigureSpec, read_figures
from flattrain.lab.grid import read_axes
from flattrain.lab.scope import Scope
from flattrain.lab.spec import EVALUATIONS, MOST, TRAIN, need, need_one_of, need_precision
from flattrain.lab.tune_spec import need_equal
from flattrain.ranges import Refused


@dataclass(frozen=True)
class Recipe:
    """A checked recipe. Until settings are chosen, the cells of tuned arms have the first candidate."""

    name: str
    title: str
    question: str
    paper: str
    notes: str
    seeds: int
    axes: tuple[str, ...]
    cells: tuple[Cell, ...]
    claims: tuple[Claim, ...]
    correction: str
    figures: tuple[FigureSpec, ...]
    raw: dict[str, Any]
    tunings: tuple[Tuning, ...] = ()
    derived: tuple[Derived, ...] = ()

    @property
    def key(self) -> str:
        """The trial's identity: cells, candidates, claims and the code that measures them."""
        tuned = {t.of: t.key for t in self.tunings}
        keys = [tuned.get(place(c), c.key) for c in self.cells]
        stated = [self.raw["claims"], self.correction]
        return digest([self.name, keys, *stated, *([self.raw["derived"]] if self.derived else [])])


def read(name: str, raw: dict[str, Any]) -> Recipe:
    """Check every key and value of a composed recipe."""
    need("seeds", raw["seeds"], "Count")
    for key, value in (("seeds", raw["seeds"]), ("train.milestones", raw["train"]["milestones"])):
        if isinstance(value, int) and value > MOST:
            raise Refused(f"{key} must be at most {MOST:,}, got {value}")
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
    axes = read_axes(raw["grid"])
    parts = measured(raw["measures"], "measures")
    cells: list[Cell] = []
    tunings: list[Tuning] = []
    for arm, changes in raw["arms"].items():
        made, tuned = arm_cells(name, str(arm), changes or {}, raw, axes)
        cells += made
        tunings += tuned
    stated = [str(a) for a, changes in raw["arms"].items() if "budget" in ((changes or {}).get("tune") or {})]
    need_equal({t.of[0]: t.spec.runs for t in tunings}, stated)
    points = {axis: {c.point[axis] for c in cells if axis in c.point} for axis in axes}
    every = [parts, *(c.spec["measures"] for c in cells)]
    taken = dict.fromkeys([n for m in every for n in quantities(m)])
    derived = read_derived(raw.get("derived"), (*taken, EVALUATIONS), points)
    named = (*taken, EVALUATIONS, *(d.name for d in derived))
    scope = Scope(tuple(map(str, raw["arms"])), points, named)
    return Recipe(
        name,
        raw["title"] or name,
        raw["question"],
        raw["paper"],
        str(raw.get("notes") or "").strip(),
        raw["seeds"],
        tuple(axes),
        tuple(cells),
        read_claims(raw["claims"], scope),
        read_correction(raw.get("correction", "none")),
        read_figures(raw["figures"], scope),
        raw,
        tuple(tunings),
        derived,
    )
