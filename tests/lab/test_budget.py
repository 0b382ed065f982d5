"""Arms that are given gradient evaluations in place of steps: each trains as long as its rule can afford."""

from __future__ import annotations

import pytest

from flattrain.lab import results
from flattrain.lab.budget import affordable
from flattrain.lab.cells import rows_of
from flattrain.lab.compose import composed
from flattrain.lab.run import run_cell
from flattrain.lab.verdicts import judge_all
from recipes import call, write

RECIPE = """
title: Equal budgets
paper: none
problem: {dataset: {digits: {train: 40, test: 20}}, loss: cross_entropy}
model: {mlp: {widths: [4]}}
train: {lr: 0.1, batch_size: 10, gradient_evaluations: 45, milestones: 3, spacing: linear}
seeds: 2
arms:
  sgd: {}
  sam: {rule: sam}
  looksam: {rule: {looksam: {every: 4}}}
  own: {train: {gradient_evaluations: null, steps: 7}, rule: sam}
measures: {along: [train_loss]}
claims:
  falls:
    says: It falls.
    test: {median: {quantity: gradient_evaluations, arm: sam}}
    predicts: {at_most: 45}
"""


def test_each_arm_has_the_steps_that_fit(tmp_path):
    path = write(tmp_path, RECIPE)
    asked = composed([f"recipe={path}"])
    found = affordable(asked)
    # LookSAM: 5 evaluations per 4 steps, 2 of them at the first; 45 = 9 · 5.
    assert {c.arm: c.steps for c in found.cells} == {"sgd": 45, "sam": 22, "looksam": 36, "own": 7}
    assert found.key == asked.key and [c.key for c in found.cells] == [c.key for c in asked.cells]
    other = composed([f"recipe={path}", "train.gradient_evaluations=46"])
    changed = {a.arm for a, b in zip(asked.cells, other.cells, strict=True) if a.key != b.key}
    assert changed == {"sgd", "sam", "looksam"}


def test_a_run_has_the_evaluations_at_every_milestone(tmp_path):
    recipe = affordable(composed([f"recipe={write(tmp_path, RECIPE)}"]))
    rows = []
    for cell in recipe.cells:
        rows += rows_of(cell, run_cell(cell.spec, None, tmp_path / "none.safetensors", lambda step: None))
    table = results.Table(rows)
    for arm, expected in {"sgd": [0, 15, 30, 45], "sam": [0, 14, 30, 44], "own": [0, 4, 10, 14]}.items():
        assert set(table.series("gradient_evaluations", arm, ())) == {0, 1}
        for found in table.series("gradient_evaluations", arm, ()).values():
            assert [r.value for r in found] == expected
            assert all(r.standard_error == 0 for r in found)
    (verdict,) = judge_all(recipe.claims, table)
    assert verdict.verdict == "supported" and verdict.interval.estimate == 44


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train.steps=3"], "got steps, gradient_evaluations"),
        (["train.gradient_evaluations=null"], "got none"),
        (["train.gradient_evaluations=0"], "must be a whole number >= 1"),
        (["train.gradient_evaluation=3"], "did you mean 'train.gradient_evaluations'"),
    ],
)
def test_refusals(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, RECIPE)
    code, out, err = call(capsys, "recipe=tiny", *words)
    assert code == 2 and said in err and out == "" and err.count("\n") == 1
