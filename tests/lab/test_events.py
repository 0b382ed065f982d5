"""Tests of claims on what happens along a run: when, how far it falls, on which line; contrasts of arms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from claimed import claim, table_of, verdict
from scipy import stats

from flattrain.lab.results import Row, Table
from flattrain.ranges import Refused

STEPS = (0, 1, 10, 20, 40, 80)


def runs(**series):
    """One arm whose quantities (loss, error, trace) have these values at STEPS, per seed."""
    rows = []
    for quantity, seeds in series.items():
        for seed, values in enumerate(seeds):
            for step, value in zip(STEPS, values, strict=True):
                rows.append(Row("a", (), seed, step, quantity, float(value), 0.0))
    return Table(rows)


TABLE = runs(
    trace=[[1, 4, 9, 8, 4, 1], [1, 9, 9, 3, 2, 2], [1, 2, 3, 9, 5, 4]],
    loss=[[9, 6, 1, 1, 1, 1], [9, 4, 4, 4, 1, 1], [9, 9, 9, 1, 1, 1]],
    error=[[9, 9, 9, 9, 9, 1], [9, 9, 9, 9, 9, 1], [9, 9, 9, 9, 1, 1]],
)
PEAK = {"quantity": "trace", "turn": "peak"}
HALF = {"quantity": "trace", "turn": "half_fall"}
FITTED = {"quantity": "loss", "below": 2}
LEARNT = {"quantity": "error", "below": 2}


def of(test, values=TABLE):
    found = verdict(test, {"above": -100}, values)
    assert found.verdict == "supported", found.reason
    return found.interval


def test_a_lag_is_how_many_times_later_in_doublings():
    # Peaks at 10, 1 (the first of two) and 20; fitted at 10, 40, 20: 0, −log₂ 40, 0.
    assert of({"lag": {"event": PEAK, "behind": FITTED, "arm": "a"}}).estimate == 0
    # Half of the peak at 40, 20, 80 (5 is more than 4.5): against 80, 80, 40.
    assert of({"lag": {"event": HALF, "behind": LEARNT, "arm": "a"}}).estimate == -1
    first = {"quantity": "loss", "above": 0}  # at step 0, which counts as 1
    assert of({"lag": {"event": FITTED, "behind": first, "arm": "a"}}).estimate == pytest.approx(
        math.log2(20)
    )


def test_which_event_is_nearer():
    peak = {"nearer": {"event": PEAK, "to": FITTED, "than": LEARNT, "arm": "a"}}
    assert of(peak).estimate == 1
    other = {"nearer": {"event": PEAK, "to": LEARNT, "than": FITTED, "arm": "a"}}
    assert of(other).estimate == 0
    # 40 is 30 from 10 and 40 from 80, 20 is 20 from 40 and 60 from 80, 80 is 60 from 20 and 40 from 40.
    half = of({"nearer": {"event": HALF, "to": FITTED, "than": LEARNT, "arm": "a"}})
    exact = stats.binomtest(2, 3).proportion_ci(0.95, "exact")
    assert half[:3] == pytest.approx((2 / 3, exact.low, exact.high)) and half.n == 3


def test_an_event_that_never_happens_voids():
    never = {"lag": {"event": {"quantity": "loss", "below": 0}, "behind": PEAK, "arm": "a"}}
    found = verdict(never, {"above": 0}, TABLE)
    assert found.verdict == "void" and "seeds 0, 1, 2 of arm a never come to loss < 0" in found.reason
    rising = runs(trace=[[1, 2, 3, 4, 5, 6]] * 3, loss=[[1] * 6] * 3)
    found = verdict(
        {"lag": {"event": HALF, "behind": {"quantity": "loss", "above": 0}, "arm": "a"}}, {"above": 0}, rising
    )
    assert found.verdict == "void" and "never come to the half fall of trace" in found.reason


def test_a_fall_is_the_last_over_the_largest():
    assert of({"fall": {"quantity": "trace", "arm": "a"}}).estimate == pytest.approx(2 / 9)
    zero = verdict({"fall": {"quantity": "loss", "arm": "a"}}, {"above": 0}, runs(loss=[[0] * 6] * 3))
    assert zero.verdict == "void" and "nowhere positive" in zero.reason


def test_a_line_along_each_run_after_logarithms():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 6))
    y = np.exp(-2 * x + 0.5 * rng.normal(size=x.shape))
    table = runs(loss=x.tolist(), trace=y.tolist(), error=np.ones((4, 6)).tolist())
    fits = [stats.linregress(a, np.log(b)) for a, b in zip(x, y, strict=True)]
    spec = {"x": "loss", "y": "trace", "log": "y", "arm": "a"}
    assert of({"line": spec | {"of": "slope"}}, table).estimate == pytest.approx(
        np.median([f.slope for f in fits])
    )
    assert of({"line": spec | {"of": "correlation"}}, table).estimate == pytest.approx(
        np.median([f.rvalue for f in fits])
    )
    straight = [stats.linregress(a, b).rvalue for a, b in zip(x, y, strict=True)]
    plain = {"x": "loss", "y": "trace", "arm": "a", "of": "correlation"}
    assert of({"line": plain}, table).estimate == pytest.approx(np.median(straight))
    flat = verdict({"line": plain | {"y": "error"}}, {"above": 0}, table)
    assert flat.verdict == "void" and "error does not vary along a run" in flat.reason
    negative = verdict({"line": plain | {"log": "x"}}, {"above": 0}, table)
    assert negative.verdict == "void" and "loss is not positive everywhere" in negative.reason
    few = {"line": plain | {"among": {"quantity": "error", "above": 2}}}
    assert verdict(few, {"above": 0}, table).verdict == "void"


def test_a_contrast_of_four_arms_is_their_main_effect():
    cells = np.random.default_rng(1).normal(size=(4, 6))
    four = {(arm, 10, "error"): list(cells[k]) for k, arm in enumerate("abcd")}
    weights = {"a": -0.5, "b": -0.5, "c": 0.5, "d": 0.5}
    each = (cells[2] + cells[3] - cells[0] - cells[1]) / 2
    found = of({"contrast": {"quantity": "error", "weights": weights}}, table_of(four))
    exact = stats.t.interval(0.95, 5, loc=each.mean(), scale=stats.sem(each))
    assert found[:3] == pytest.approx((each.mean(), *exact))
    rows = {"effect": {"quantity": "error", "cells": [["a", "b"], ["c", "d"]], "of": "rows"}}
    assert of(rows, table_of(four)).estimate == pytest.approx(found.estimate)


def test_a_contrast_is_void_where_one_of_its_arms_is_not_matched():
    four = {(arm, 10, "error"): [1.0, 2.0, 3.0] for arm in "abcd"}
    four |= {(arm, 10, "loss"): [0.0] * 3 if arm != "c" else [0.5] * 3 for arm in "abcd"}
    rule = [{"matched": {"quantity": "loss", "within": 0, "floor": 0.1}}]
    test = {"contrast": {"quantity": "error", "weights": {"a": 1, "c": -1}}}
    assert verdict(test, {"at_least": 0}, four, void_unless=rule).verdict == "void"
    test = {"contrast": {"quantity": "error", "weights": {"a": 1, "d": -1}}}
    assert verdict(test, {"at_least": 0}, four, void_unless=rule).verdict == "supported"


@pytest.mark.parametrize(
    ("test", "said"),
    [
        ({"lag": {"event": PEAK, "arm": "a"}}, "behind: must be a table"),
        (
            {"lag": {"event": {"quantity": "trace"}, "behind": PEAK, "arm": "a"}},
            "give exactly one of at_most",
        ),
        ({"lag": {"event": PEAK | {"turn": "peek"}, "behind": PEAK, "arm": "a"}}, "peak or half_fall"),
        ({"lag": {"event": PEAK | {"below": 1}, "behind": PEAK, "arm": "a"}}, "stand alone"),
        ({"lag": {"event": PEAK | {"trun": 1}, "behind": PEAK, "arm": "a"}}, "did you mean 'turn'"),
        ({"nearer": {"event": PEAK, "to": PEAK, "than": LEARNT}}, "unknown arm None"),
        ({"fall": {"quantity": "flatness", "arm": "a"}}, "'flatness' is not measured"),
        ({"line": {"x": "loss", "y": "trace", "arm": "a"}}, "of is missing"),
        (
            {"line": {"x": "loss", "y": "trace", "arm": "a", "of": "rows"}},
            "must be one of slope, correlation",
        ),
        ({"contrast": {"quantity": "loss", "weights": {"a": 1, "b": 1}}}, "add up to 0, these to 2"),
        ({"contrast": {"quantity": "loss", "weights": {"a": 1, "e": -1}}}, "unknown arm 'e'"),
        ({"contrast": {"quantity": "loss", "weights": {"a": 1}}}, "two arms or more"),
        ({"contrast": {"quantity": "loss"}}, "two arms or more"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(test, said):
    with pytest.raises(Refused, match=said):
        claim(test, {"above": 0})
