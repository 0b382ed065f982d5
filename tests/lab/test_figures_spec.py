"""Figures in a recipe: what is accepted, what is refused, and what a recipe gets that asks for none."""

from __future__ import annotations

import numpy as np
import pytest

from flattrain.lab.claims import Scope
from flattrain.lab.figures_spec import default_figures, read_figures
from flattrain.lab.painters import final_values
from flattrain.lab.results import Row, Table
from flattrain.ranges import Refused

SCOPE = Scope(("a", "b"), {"n": {10, 20}}, ("train_loss", "test_loss", "trace"))
GAP = {"difference": ["test_loss", "train_loss"]}


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("final", "give one of trajectory, scatter, sweep, final"),
        ({"fnal": {}}, "did you mean 'final'"),
        ({"final": []}, r"figures\[0\].final: must be a table"),
        ({"final": {}}, "final.quantity: None is not measured"),
        ({"final": {"quantity": "trase"}}, "did you mean 'trace'"),
        ({"final": {"quantity": "trace", "over": "n"}}, "unknown key 'over'"),
        ({"final": {"quantity": "trace", "log": "y"}}, "log: must be one of x, got 'y'"),
        ({"final": {"quantity": "trace", "arms": "a"}}, "arms: must be a list"),
        ({"final": {"quantity": "trace", "arms": ["c"]}}, "unknown arm 'c'"),
        ({"final": {"quantity": "trace", "at": {"n": 11}}}, "11 is not on the grid"),
        ({"trajectory": {"quantity": {"difference": ["trace"]}}}, "give a quantity, or {difference"),
        ({"trajectory": {"quantity": {"minus": ["trace", "trace"]}}}, "give a quantity, or {difference"),
        ({"trajectory": {"quantity": {"difference": ["trace", "los"]}}}, "difference: 'los' is not measured"),
        ({"trajectory": {"quantity": "trace", "log": True}}, "log: must be one of x, y, xy"),
        ({"sweep": {"quantity": "trace", "over": ["n"]}}, "unknown axis"),
        ({"scatter": {"x": "trace"}}, "scatter.y: None is not measured"),
    ],
)
def test_what_is_refused(entry, said):
    with pytest.raises(Refused, match=said):
        read_figures([entry], SCOPE)


def test_what_is_accepted():
    entries = [
        {"final": {"quantity": GAP, "at": {"n": 10}, "arms": ["b"], "title": "t", "log": "x"}},
        {"scatter": {"x": "trace", "y": GAP, "log": "xy"}},
    ]
    assert [tuple(f) for f in read_figures(entries, SCOPE)] == [next(iter(e.items())) for e in entries]
    assert read_figures(None, SCOPE) == ()
    with pytest.raises(Refused, match="figures: must be a list"):
        read_figures({"final": {}}, SCOPE)


def test_a_difference_is_taken_seed_by_seed():
    point = (("n", "10"),)
    values = {"test_loss": [3.0, 5.0, 7.0], "train_loss": [1.0, 1.5]}
    rows = [Row("a", point, s, 9, q, v, 0.0) for q, vs in values.items() for s, v in enumerate(vs)]
    found = final_values(Table(rows), GAP, "a", point)
    assert found == {0: 2.0, 1: 3.5} and np.isclose(sum(found.values()), 5.5)


def test_figures_by_default():
    along, end = ("train_loss", "test_loss"), ("trace",)
    found = default_figures(("trace", "test_loss"), along, end, {"n": {10, 20}})
    assert [tuple(f) for f in found] == [
        ("trajectory", {"quantity": "test_loss"}),
        ("sweep", {"over": "n", "quantity": "trace"}),
        ("sweep", {"over": "n", "quantity": "test_loss"}),
        ("scatter", {"x": "trace", "y": GAP}),
    ]
    bare = default_figures((), along, (), {"n": {10}})
    assert [tuple(f) for f in bare] == [
        ("trajectory", {"quantity": "train_loss"}),
        ("final", {"quantity": "train_loss"}),
    ]
    assert default_figures((), (), (), {}) == ()
