"""Each rule of the catalogue in a recipe: alone, inside a schedule, and with SAM inside it."""

from __future__ import annotations

import pytest
import torch

from flattrain.lab import catalog
from flattrain.lab.compose import composed
from flattrain.lab.run import Experiment
from recipes import write

PAIRED = {"obar", "nbar"}  # they name two parameters
INERT = {"plain", "schedule"}


def params_after(path, rule, steps=6):
    """The parameters after some steps of the recipe's trainer under the rules given."""
    recipe = composed([f"recipe={path}", "backend=stacked", f"train.steps={steps}"])
    (cell,) = [c for c in recipe.cells if c.arm == "batch"]
    experiment = Experiment(cell.spec | {"rule": rule}, None)
    state = experiment.trainer.init()
    names = list(state.params)
    while state.step < steps:
        state = experiment.trainer.advance(state, steps)
    return names, state.params


@pytest.mark.parametrize("name", catalog.RULES)
def test_a_recipe_may_name_it(name, tmp_path):
    path = write(tmp_path)
    names, plain = params_after(path, [{"plain": {}}])
    arguments = dict(zip(("x", "y"), names, strict=False)) if name in PAIRED else {}
    if name == "sam_on":
        arguments = {"parameters": names[:1]}  # this net has no normalisation
    for rules in (
        [{name: arguments}],
        [{"schedule": {"shape": "linear", "stop": 4, "last": 0.5}}, {name: arguments}, {"sam": {}}],
    ):
        _, after = params_after(path, rules)
        assert all(torch.isfinite(v).all() for v in after.values())
        if name not in INERT:
            assert any(not torch.equal(after[k], plain[k]) for k in names), "the rule did nothing"
