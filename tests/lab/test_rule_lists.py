"""A recipe may put rules one inside the other."""

from __future__ import annotations

import json

import torch

import recipes
from flattrain.core.losses import squared_error
from flattrain.lab.compose import composed
from flattrain.lab.run import Experiment
from flattrain.rules.sam import sam

RULES = "[{schedule: {start: 2, before: 0}}, {weight_decay: {lam: 0.1}}, sam]"
LISTED = recipes.TINY.replace(
    "rule: {sam: {rho: 0.05}}}", f"rule: {RULES},\n        train: {{batch_size: 4}}}}"
)


def test_the_list_is_the_composition(tmp_path):
    recipe = composed([f"recipe={recipes.write(tmp_path, LISTED)}"])
    cell = next(c for c in recipe.cells if c.arm == "sam" and c.point == {"n": 12})
    assert [next(iter(rule)) for rule in cell.spec["rule"]] == ["schedule", "weight_decay", "sam"]
    assert json.loads(json.dumps(cell.spec)) == cell.spec
    experiment = Experiment(cell.spec | {"seeds": 1, "first_seed": 0}, None)
    state = experiment.trainer.init()
    for step, rho in enumerate((0.0, 0.0, 0.05)):
        before = {k: v[0] for k, v in state.params.items()}
        state = experiment.trainer.advance(state, step + 1)
        lr = cell.spec["train"]["optimizer"]["sgd"]["lr"]
        taken = {k: (before[k] - v[0]) / lr - 0.1 * before[k] for k, v in state.params.items()}
        wanted = gradient_of(experiment, before, step, rho)
        for k in taken:
            torch.testing.assert_close(taken[k], wanted[k], rtol=1e-6, atol=1e-6)


def gradient_of(experiment, params, step, rho):
    from flattrain.training.batches import indices
    from flattrain.training.objective import build
    from flattrain.types import Batch

    split = experiment.splits[0]
    pick = indices(0, len(split.train_x), 4, step, step + 1)[0]
    grad_fn = build(experiment.module, squared_error, []).gradient()
    return sam(rho=rho)(grad_fn)(params, Batch(split.train_x[pick], split.train_y[pick]))[0]


def test_a_mistake_in_the_list_names_its_place(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipes.write(tmp_path, LISTED.replace("{weight_decay: {lam: 0.1}}", "{weight_deca: {lam: 0.1}}"))
    code, _, err = recipes.call(capsys, "recipe=tiny")
    assert code == 2 and "rule: unknown 'weight_deca'; did you mean 'weight_decay'?" in err
