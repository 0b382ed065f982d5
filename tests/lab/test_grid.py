"""Axes of a grid: several keys at once, places and names in lists, and keys of an arm's own."""

from __future__ import annotations

import copy

import pytest

from flattrain.lab.compose import composed
from flattrain.lab.grid import Axis, of_arm, put, read_axes
from flattrain.ranges import Refused
from recipes import call, write

AXES = {"n": Axis(("problem.n",), [1, 2])}
SETTINGS = {
    "model": {"widths": [8, 4]},
    "end": ["loss", {"mine": {"rank": {"lam": 1.0}}}],
    "rule": [{"sam": {}}],
}

RECIPE = """
problem: {dataset: {digits: {train: 30, test: 20}}, loss: cross_entropy}
model: {mlp: {widths: [3]}}
train: {lr: 0.02, batch_size: 4, steps: 20, milestones: 1}
seeds: 2
grid:
  decay: {key: [train.weight_decay, measures.end.mine.soft_rank.lam], values: [0.1, 0.01]}
  n: {key: [problem.dataset.digits.train, train.batch_size], values: [30]}
  h: {key: model.mlp.widths.0, values: [3, 5]}
arms:
  plain: {}
  other:
    problem: {dataset: {parity: {dim: 5, train: 12, test: 30}}, loss: squared_error}
    grid: {n: {key: problem.dataset.parity.train, values: [9]}, h: [7]}
measures: {along: [train_loss], end: [{mine: {soft_rank: {}}}]}
"""


def test_a_value_goes_to_all_keys_and_arms_have_keys_of_their_own(tmp_path):
    cells = composed([f"recipe={write(tmp_path, RECIPE)}"]).cells
    plain = [c for c in cells if c.arm == "plain"]
    assert [(c.point["decay"], c.point["n"], c.point["h"]) for c in plain] == [
        (0.1, 30, 3), (0.1, 30, 5), (0.01, 30, 3), (0.01, 30, 5),
    ]  # fmt: skip
    for c in cells:
        decay = c.point["decay"]
        assert c.spec["train"]["optimizer"]["sgd"]["weight_decay"] == decay
        assert c.spec["measures"]["end"] == [{"mine": {"soft_rank": {"lam": decay}}}]
        assert c.spec["model"]["mlp"]["widths"] == [c.point["h"]]
    assert {c.spec["train"]["batch_size"] for c in plain} == {30}
    other = [c for c in cells if c.arm == "other"]
    assert [c.spec["dataset"]["parity"]["train"] for c in other] == [9, 9]
    assert {c.point["h"] for c in other} == {7} and {c.spec["train"]["batch_size"] for c in other} == {4}


@pytest.mark.parametrize(
    ("path", "value", "wanted"),
    [
        ("model.widths.1", 9, {"model": {"widths": [8, 9]}}),
        ("end.mine.rank.lam", 2.0, {"end": ["loss", {"mine": {"rank": {"lam": 2.0}}}]}),
        ("end.1.mine.rank.lam", 2.0, {"end": ["loss", {"mine": {"rank": {"lam": 2.0}}}]}),
        ("rule.0.sam.rho", 0.1, {"rule": [{"sam": {"rho": 0.1}}]}),
    ],
)
def test_a_path_into_a_list(path, value, wanted):
    settings = copy.deepcopy(SETTINGS)
    put(settings, path, value, "here")
    assert settings == SETTINGS | wanted


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("model.width.0", "there is no table for 'model.width.0'; did you mean 'widths'"),
        ("end.min.rank.lam", "there is no table for .*; did you mean 'mine'"),
        ("end.2.rank.lam", "there is no table for"),
        ("model.widths.2", "is not a setting"),
        ("end.mine", "is not a setting"),
        ("rule.0", "name the setting there as well"),
    ],
)
def test_a_path_that_leads_nowhere(path, said):
    with pytest.raises(Refused, match=said):
        put(copy.deepcopy(SETTINGS), path, 1, "here")


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ([1], "must be a table"),
        ({"m": [1]}, "unknown axis 'm'; known: n"),
        ({"n": []}, "n must be a list of values"),
        ({"n": {"keys": "x"}}, "unknown key 'keys'; did you mean 'key'"),
        ({"n": {"key": 3}}, "n.key must be a dotted path or a list of them"),
        ({"n": {"values": {}}}, "n.values must be a list of values"),
    ],
)
def test_what_an_arm_may_not_change(entry, said):
    with pytest.raises(Refused, match=said):
        of_arm(entry, AXES, "arms.a.grid")


def test_what_a_grid_needs():
    assert read_axes({"n": {"key": ["a.b", "c"], "values": [1]}}) == {"n": Axis(("a.b", "c"), [1])}
    for entry in ({"key": [], "values": [1]}, {"key": "a"}, {"key": "a", "values": [[1]]}):
        with pytest.raises(Refused):
            read_axes({"n": entry})
    assert of_arm({"n": {"values": [5]}}, AXES, "x") == {"n": Axis(("problem.n",), [5])}


def test_a_key_of_an_axis_cannot_be_tuned(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, RECIPE.replace("plain: {}", "plain: {tune: {over: {train.batch_size: [2, 4]}}}"))
    code, _, err = call(capsys, "recipe=tiny")
    assert code == 2 and "train.batch_size is the grid axis n; it cannot be tuned as well" in err
