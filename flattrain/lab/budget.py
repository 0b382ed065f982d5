"""A budget of gradient evaluations as steps: each arm takes as many as its own rule can afford."""

from __future__ import annotations

import dataclasses

from flattrain.lab.recipe import Cell, Recipe
from flattrain.lab.spec import EVALUATIONS
from flattrain.ranges import Refused


def affordable(recipe: Recipe) -> Recipe:
    """The recipe with the steps of every cell that was given `train.gradient_evaluations`."""
    root = recipe.raw["data"]["root"]
    return dataclasses.replace(recipe, cells=tuple(_with_steps(cell, root) for cell in recipe.cells))


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
    return dataclasses.replace(cell, spec=cell.spec | {"train": train | {"steps": steps}})
