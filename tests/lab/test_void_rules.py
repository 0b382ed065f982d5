"""Conditions that void a claim: unmatched arms, quantities that still move, quantities out of bounds."""

from __future__ import annotations

import pytest
from claimed import claim, verdict

from flattrain.ranges import Refused

PAIR = {"difference": {"quantity": "error", "arm": "a", "versus": "b", "at": {"n": 10}}}
ERRORS = {("a", 10, "error"): [[0.5, 0.1]] * 6, ("b", 10, "error"): [[0.5, 0.2]] * 6}


def judged(rule, values, test=PAIR):
    return verdict(test, {"below": 0}, ERRORS | values, void_unless=[rule])


def losses(a, b):
    return {("a", 10, "loss"): [[1.0, v] for v in a], ("b", 10, "loss"): [[1.0, v] for v in b]}


def test_arms_that_are_not_matched_on_a_quantity_void_their_comparison():
    rule = {"matched": {"quantity": "loss", "within": 0.1}}
    close = losses([0.10, 0.11, 0.09, 0.10, 0.10, 0.12], [0.105] * 6)
    assert judged(rule, close).verdict == "supported"
    apart = losses([0.10] * 6, [0.12] * 6)
    found = judged(rule, apart)
    assert found.verdict == "void"
    assert "not matched on loss: its median is 0.1 for a n=10 and 0.12 for b n=10" in found.reason
    assert judged({"matched": {"quantity": "loss", "within": 0.2}}, apart).verdict == "supported"
    tiny = losses([1e-12] * 6, [1e-9] * 6)
    assert judged(rule, tiny).verdict == "void"
    assert (
        judged({"matched": {"quantity": "loss", "within": 0.1, "floor": 1e-6}}, tiny).verdict == "supported"
    )


def test_matching_is_looked_at_where_the_test_looks():
    values = losses([0.01] * 6, [0.4] * 6)  # both begin at 1.0
    at_start = {"difference": PAIR["difference"] | {"when": {"quantity": "loss", "at_most": 1.0}}}
    rule = {"matched": {"quantity": "loss", "within": 0.1}}
    found = judged(rule, values, at_start)
    assert found.verdict == "refuted" and found.interval.estimate == 0  # not void: matched at 1.0
    assert judged(rule, values).verdict == "void"


def test_all_cells_of_a_sweep_must_match():
    values = {(arm, n, q): [1.0, 2.0, 3.0] for arm in "ab" for n in (10, 20) for q in ("error", "trace")}
    values |= {(arm, n, "loss"): [0.1] * 3 for arm in "ab" for n in (10, 20)}
    test = {"rank_correlation": {"x": "trace", "y": "error"}}
    rule = {"matched": {"quantity": "loss", "within": 0.1}}
    assert verdict(test, {"above": 0}, values, void_unless=[rule]).verdict == "supported"
    odd = values | {("b", 20, "loss"): [0.5] * 3}
    assert verdict(test, {"above": 0}, odd, void_unless=[rule]).verdict == "void"
    only = {"matched": rule["matched"] | {"arms": ["a"]}}
    assert verdict(test, {"above": 0}, odd, void_unless=[only]).verdict == "supported"
    effect = {
        "effect": {"quantity": "error", "of": "rows", "rows": {"arm": ["a", "b"]}, "columns": {"n": [10, 20]}}
    }
    assert verdict(effect, {"between": [-1, 1]}, values, void_unless=[rule]).verdict == "supported"
    assert verdict(effect, {"between": [-1, 1]}, odd, void_unless=[rule]).verdict == "void"


def test_a_quantity_that_still_moves_at_the_end_voids():
    steps = 11  # steps 0 … 10; the last fifth begins at step 8
    still = {("a", 10, "trace"): [[float(k) for k in range(steps)]] * 6}
    calm = {("a", 10, "trace"): [[float(min(k, 6)) for k in range(steps)]] * 6}
    other = {("b", 10, "trace"): [[3.0] * steps] * 6}
    rule = {"stationary": {"quantity": "trace", "within": 0.05}}
    assert judged(rule, calm | other).verdict == "supported"
    found = judged(rule, still | other)
    assert found.verdict == "void" and "trace of a n=10 still changes by 0.2 of its size" in found.reason
    late = {"stationary": {"quantity": "trace", "within": 0.05, "last": 0.5}}
    assert "changes by 0.1667" in judged(late, calm | other).reason
    only = {"stationary": {"quantity": "trace", "within": 0.05, "arms": ["b"]}}
    assert judged(only, still | other).verdict == "supported"
    short = judged(rule, {("a", 10, "trace"): [1.0] * 6} | other)
    assert short.verdict == "void" and "no earlier milestone" in short.reason
    gone = judged({"stationary": {"quantity": "loss", "within": 0.1}}, {})
    assert gone.verdict == "missing"


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"matched": {"quantity": "loss"}}, "within is missing"),
        ({"matched": {"quantity": "los", "within": 0.1}}, "did you mean 'loss'"),
        ({"matched": {"quantity": "loss", "within": -1}}, "a number >= 0"),
        ({"matched": {"quantity": "loss", "within": 0.1, "last": 0.1}}, "unknown key 'last'"),
        ({"stationary": {"quantity": "loss", "within": 0.1, "last": 2}}, "from 0 to 1"),
        ({"stationary": {"quantity": "loss", "within": 0.1}, "arm": "a"}, "stands alone"),
        ({"quantity": "loss", "arm": "e", "at_most": 1}, "unknown arm 'e'"),
        (3, "must be a table"),
    ],
)
def test_a_condition_that_cannot_be_judged_is_refused(rule, said):
    with pytest.raises(Refused, match=said):
        claim(PAIR, {"below": 0}, void_unless=[rule])
