"""Curvature as recipes have it: tables of λ and eigenvalues, penalised over stacked seeds and measured."""

from __future__ import annotations

import math

import pytest

from flattrain.lab import results
from recipes import call, write

RECIPE = """
title: Curvature
question: Does it run?
paper: none
problem: {dataset: {digits: {train: 40, test: 40}}, loss: cross_entropy}
model: {mlp: {widths: [6], activation: tanh}}
train: {optimizer: sgd, lr: 0.2, batch_size: 20, steps: 6, milestones: 1}
precision: float64
seeds: 2
arms:
  plain: {}
  ranks: {penalties: {soft_rank: {weight: 0.1, lam: {"": 0.001, head: 0.01, head.bias: 0.1}}}}
  top: {penalties: {hessian_top_eigenvalue: {weight: 0.05, products: 8}}}
measures:
  along: [train_loss, test_loss]
  end:
    - top_eigenvalue
    - hessian_top_eigenvalue: {products: 60}
    - representativeness: {layer: head, delta: 0.3, probes: 3}
    - feature_robustness: {layer: head, delta: 0.3, probes: 3}
    - fisher_rank: {lam: {"": 0.001, head: 0.01, head.bias: 0.1}}
claims:
  runs:
    says: The loss is finite.
    test: {median: {quantity: train_loss, arm: plain}}
    predicts: {below: 100}
figures: []
"""


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("curvature")
    path = write(folder, RECIPE, "curvature")
    from flattrain.lab import cli

    assert cli.run([f"recipe={path}", f"out={folder / 'run'}", "jobs=1"]) == 0
    return results.read(folder / "run" / "results.csv")


def test_ranks_with_a_table_of_lambdas(table):
    ranks = {arm: table.final("fisher_rank", arm, ()) for arm in ("plain", "ranks")}
    assert all(len(found) == 2 and all(map(math.isfinite, found.values())) for found in ranks.values())
    assert all(ranks["ranks"][seed] < ranks["plain"][seed] for seed in ranks["plain"])


def test_the_top_eigenvalue_is_penalised_and_measured(table):
    found = {arm: table.final("top_eigenvalue", arm, ()) for arm in ("plain", "top")}
    assert all(found["top"][seed] < found["plain"][seed] for seed in found["plain"])
    for arm, values in found.items():
        same = table.final("hessian_top_eigenvalue", arm, ())
        assert all(same[seed] == pytest.approx(value, rel=2e-3) for seed, value in values.items())


def test_representativeness_and_feature_robustness_make_up_the_gap(table):
    found = {
        name: table.final(name, "plain", ())
        for name in ("train_loss", "test_loss", "representativeness", "feature_robustness")
    }
    for seed in (0, 1):
        gap = found["test_loss"][seed] - found["train_loss"][seed]
        whole = found["representativeness"][seed] + found["feature_robustness"][seed]
        assert whole == pytest.approx(gap, abs=1e-12) and found["feature_robustness"][seed] > 1e-5


def test_a_wrong_name_is_refused_before_anything_is_written(tmp_path, capsys):
    path = write(tmp_path, RECIPE.replace("head.bias", "head.bais"), "curvature")
    code, _, err = call(capsys, f"recipe={path}", f"out={tmp_path / 'run'}")
    assert code == 2 and "did you mean 'head.bias'" in err and err.count("\n") == 1
    assert not (tmp_path / "run").exists()
