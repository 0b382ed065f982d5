"""A budget of gradient evaluations as steps: each arm takes as many as its own rule can afford."""

from __future__ import annotations

import dataclasses

from flattrain.lab.cell import Cell, place
from flattrain.lab.recipe import Recipe
from flattrain.lab.spec import EVALUATIONS
from flattrain.ranges import Refused


def affordable(recipe: Recipe) -> Recipe:
    """The recipe with the steps of every cell that was given `train.gradient_evaluations`."""
    root = recipe.raw["data"]["root"]
    tunings = []
    for tuning in recipe.tunings:
        finals = tuple(_with_steps(cell, root) for cell in tuning.finals)
        pairs = zip(tuning.trials, finals, strict=True)
        trials = tuple(_of_steps(trial, final.steps) for trial, final in pairs)
        tunings.append(dataclasses.replace(tuning, trials=trials, finals=finals))
    first = {tuning.of: tuning.finals[0] for tuning in tunings}
    cells = tuple(first.get(place(cell)) or _with_steps(cell, root) for cell in recipe.cells)
    return dataclasses.replace(recipe, cells=cells, tunings=tuple(tunings))


def _of_steps(cell: Cell, steps: int) -> Cell:
    return dataclasses.replace(cell, spec=cell.spec | {"train": cell.spec["train"] | {"steps": steps}})


def _with_steps(cell: Cell, root: str | None) -> Cell:
    train = cell.spec["train"]
    if train["steps"] is not None:
        return cell
    from flattrain.lab.run import Experiment

    one = cell.spec | {"seeds": 1, "train": train | {"steps": 0}}
    try:
        steps = Experiment(one, root).cost.steps_within(train[EVALUATIONS])
    except Refused as refused:
        raise Refused(f"{cell.label}: {refused}") from None
    return _of_steps(cell, steps)
