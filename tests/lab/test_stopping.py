"""Measures taken once, where training would have stopped."""

from __future__ import annotations

import math
import re

import pytest

from flattrain.lab import results
from flattrain.lab.cells import rows_of
from flattrain.lab.compose import composed
from flattrain.lab.matching import matched
from flattrain.lab.run import run_cell
from flattrain.lab.stopping import all_stopped, read_stop, stopped
from flattrain.ranges import Refused
from recipes import call, write

STOP = {"quantity": "train_loss", "at_most": 0.5, "measures": ["weight_norm"]}
RECIPE = """
problem: {dataset: {digits: {train: 40, test: 30}}, loss: cross_entropy}
model: {mlp: {widths: [6]}}
train: {lr: 0.3, momentum: 0.9, batch_size: 40, steps: 100, milestones: 100, spacing: linear}
seeds: 3
arms: {plain: {}, slow: {train: {lr: 1.0e-6, steps: 4, milestones: 2}}}
measures:
  along: [train_loss, {size: {weight_norm: {}}}]
  stop: {quantity: train_loss, at_most: 0.5, measures: [weight_norm, test_loss]}
"""


def ran(path):
    """The table of a recipe's cells, run here one after another."""
    rows = []
    for cell in composed([f"recipe={path}"]).cells:
        rows += rows_of(cell, run_cell(cell.spec, None, None, lambda step: None))
    return results.Table(rows)


def test_each_seed_is_measured_once_at_the_first_milestone_below_the_level(tmp_path):
    table = ran(write(tmp_path, RECIPE))
    losses = table.series("train_loss", "plain", ())
    found = matched(table, "weight_norm", ("plain", ()), {"quantity": "train_loss", "at_most": 0.5})
    last = []
    for seed, rows in losses.items():
        first = next(r.step for r in rows if r.value <= 0.5)
        assert first > 0
        (own,) = table.series("weight_norm", "plain", ())[seed]
        same = {r.step: r.value for r in table.series("size", "plain", ())[seed]}
        assert own.step == first and own.value == same[first] == found[seed]
        last.append(first)
    # Training ends with the last seed to stop, and goes on where none does.
    assert len(set(last)) > 1
    assert {rows[-1].step for rows in losses.values()} == {max(last)} and max(last) < 100
    slow = table.series("train_loss", "slow", ())
    assert {rows[-1].step for rows in slow.values()} == {4}
    assert not table.series("weight_norm", "slow", ())


def test_a_resumed_run_does_not_measure_again():
    rows = [{"seed": 3, "quantity": "train_loss", "value": v} for v in (0.9, 0.4, 0.7)]
    assert stopped(STOP, rows[:1]) == set() and stopped(STOP, rows) == {3}
    assert all_stopped(STOP, rows, [3]) and not all_stopped(STOP, rows, [3, 4])
    assert not all_stopped(None, rows, [3])
    assert stopped(STOP, [{"seed": 3, "quantity": "train_loss", "value": math.nan}]) == set()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            "stop: {quantity: train_los,",
            "'train_los' is not measured along the way.*did you mean 'train_loss'",
        ),
        ("stop: {quantity: test_loss,", "'test_loss' is not measured along the way"),
        ("end: [test_error]\n  stop: {quantity: train_loss,", "move what is measured at the end"),
        ("stop: {level: 1, quantity: train_loss,", "give quantity, at_most, measures"),
        ("stp: {quantity: train_loss,", "unknown key 'stp'; known: along, end, stop"),
    ],
)
def test_what_is_refused(tmp_path, monkeypatch, capsys, change, said):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, RECIPE.replace("stop: {quantity: train_loss,", change))
    code, _, err = call(capsys, "recipe=tiny")
    assert code == 2 and err.count("\n") == 1
    assert re.search(said, err)


def test_its_measures_are_checked_like_all_others(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for old, new, said in (
        ("[weight_norm,", "[weight_nrm,", "did you mean 'weight_norm'"),
        ("[weight_norm,", "[train_loss,", "train_loss is measured twice"),
        ("along: [train_loss,", "along: [train_loss, 3,", "measures.along[1]"),
        ("at_most: 0.5, measures", "at_most: low, measures", "at_most must be a finite number"),
    ):
        write(tmp_path, RECIPE.replace(old, new))
        code, _, err = call(capsys, "recipe=tiny")
        assert code == 2 and said in err
    with pytest.raises(Refused, match="give quantity"):
        read_stop([], [], [], "x")
