"""Every training example in a batch whatever the grid, and arms without an axis of the grid."""

from __future__ import annotations

import math

import pytest

from flattrain.lab import cli, results
from flattrain.lab.compose import composed
from flattrain.ranges import Refused
from recipes import write

RECIPE = """
title: Whole batches
question: Does it run?
paper: none
problem: {dataset: {logistic_cube: {dim: 3, train: 20, test: 10}}, loss: binary_cross_entropy}
model: linear
rule: [{newton: {damping: 0}}, {weight_decay: {lam: 0.1}}]
train: {lr: 1.0, batch_size: null, steps: 8, milestones: 0}
precision: float64
seeds: 3
grid: {n: {key: problem.dataset.logistic_cube.train, values: [20, 40]}}
arms:
  logistic: {}
  ridge:
    problem: {dataset: {fixed_design: {dim: 4, train: 6, targets: 2}}, loss: half_squared_error}
    train: {steps: 1}
    grid: {n: null}
measures:
  end: [train_loss, gradient_norm: {lam: 0.1}]
claims:
  there:
    says: The gradient of what is minimised vanishes.
    test: {mean: {quantity: gradient_norm, arm: logistic, at: {n: 40}}}
    predicts: {at_most: 1.0e-12}
figures: []
"""


def test_batches_are_of_all_examples_and_newtons_method_is_at_the_minimum(tmp_path):
    path = write(tmp_path, RECIPE, "whole")
    recipe = composed([f"recipe={path}"])
    sizes = {cell.label: cell.spec["train"]["batch_size"] for cell in recipe.cells}
    assert sizes == {"logistic n=20": 20, "logistic n=40": 40, "ridge": 6}
    assert cli.run([f"recipe={path}", f"out={tmp_path / 'run'}", "jobs=1"]) == 0
    table = results.read(tmp_path / "run" / "results.csv")
    for arm, point in (("logistic", (("n", "20"),)), ("logistic", (("n", "40"),)), ("ridge", ())):
        found = table.final("gradient_norm", arm, point)
        assert len(found) == 3 and max(found.values()) < 1e-12, arm
        losses = table.series("train_loss", arm, point)
        assert all(math.isfinite(rows[-1].value) for rows in losses.values())


def test_all_examples_need_their_number(tmp_path):
    path = write(tmp_path, RECIPE.replace(", train: 6", ""), "unknown")
    with pytest.raises(Refused, match="batch_size: null, all of them, needs the dataset's train size"):
        composed([f"recipe={path}"])
