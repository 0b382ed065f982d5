"""The first stage of a run: every candidate is tried, and each arm goes on with the setting that won.

The score of a trial is the mean over its seeds of the validation quantity at the end; a trial of which any
seed has no finite one has diverged and loses to all others. Of equal scores the first in the order of the
grid wins, so that what is chosen is a function of the trials' rows. The rows have no test quantity.

A trial is a cell like any other: stored under its hash, run once, resumed when it was killed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any

from flattrain.lab.cell import Cell, Tuning, place
from flattrain.lab.recipe import Recipe
from flattrain.lab.results import Row
from flattrain.lab.tune_spec import Setting

Plan = list[dict[str, Any]]  # plain JSON, one entry for every arm and grid point that is tuned


def trials_of(recipe: Recipe) -> Recipe:
    """The first stage as a recipe of its own: the trials' cells."""
    cells = tuple(cell for tuning in recipe.tunings for cell in tuning.trials)
    return dataclasses.replace(recipe, cells=cells)


def plan(recipe: Recipe) -> Plan:
    """What will be tried, as it stands in the record before the run."""
    return [_entry(tuning, [None] * len(tuning.trials), None) for tuning in recipe.tunings]


def tuned(recipe: Recipe, rows_of_cell: Callable[[Cell], Iterable[Row]]) -> tuple[Recipe, Plan]:
    """The recipe with the chosen settings in its cells, and the plan with scores and choices."""
    chosen, entries = {}, []
    for tuning in recipe.tunings:
        scores = [seed_scores(cell, rows_of_cell(cell), tuning.spec.by) for cell in tuning.trials]
        best = first_best(scores)
        chosen[tuning.of] = tuning.finals[best]
        entries.append(_entry(tuning, scores, best))
    cells = tuple(chosen.get(place(cell), cell) for cell in recipe.cells)
    return dataclasses.replace(recipe, cells=cells), entries


def seed_scores(cell: Cell, rows: Iterable[Row], by: str) -> list[float]:
    """The quantity after the last step for each seed of a trial; nan where there is none."""
    last = {r.seed: r.value for r in rows if r.quantity == by and r.step == cell.steps}
    first, count = cell.spec["first_seed"], cell.spec["seeds"]
    return [last.get(seed, math.nan) for seed in range(first, first + count)]


def mean_score(scores: list[float]) -> float:
    """The mean over seeds; infinite for a trial that diverged."""
    if not all(map(math.isfinite, scores)):
        return math.inf
    return math.fsum(scores) / len(scores)


def first_best(scores: list[list[float]]) -> int:
    """The number of the trial with the smallest mean, the first of equal ones."""
    means = [mean_score(each) for each in scores]
    return means.index(min(means))


def at_ends(chosen: Setting, candidates: Iterable[Setting]) -> list[str]:
    """The numeric settings with the smallest or the largest value that was tried, of three or more.

    A better value may lie outside of what was tried.
    """
    every = list(candidates)
    out = []
    for path, value in chosen.items():
        tried = {c[path] for c in every}
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in tried)
        if numbers and len(tried) > 2 and value in (min(tried), max(tried)):
            out.append(path)
    return out


def _entry(tuning: Tuning, scores: list[Any], best: int | None) -> dict[str, Any]:
    spec, cell = tuning.spec, tuning.finals[0]
    trials = []
    for setting, each in zip(spec.candidates, scores, strict=True):
        trial: dict[str, Any] = {"setting": setting}
        if each is not None:
            mean = mean_score(each)
            trial["scores"] = [v if math.isfinite(v) else None for v in each]
            trial["mean"] = mean if math.isfinite(mean) else None
        trials.append(trial)
    entry: dict[str, Any] = {
        "arm": cell.arm,
        "point": cell.point,
        "by": spec.by,
        "seeds": list(range(spec.first_seed, spec.first_seed + spec.seeds)),
        "key": tuning.key,
        "trials": trials,
        "chosen": None if best is None else spec.candidates[best],
    }
    if best is not None:
        means = [mean_score(each) for each in scores]
        entry["ties"] = means.count(means[best]) - 1 if math.isfinite(means[best]) else 0
        entry["diverged"] = means.count(math.inf)
        entry["at_ends"] = at_ends(spec.candidates[best], spec.candidates)
    return entry
