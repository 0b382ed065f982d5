"""Estimates, intervals and verdicts on tables with known truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from claimed import verdict
from scipy import stats as scipy_stats

from flattrain.lab import results
from flattrain.lab.results import Row
from flattrain.ranges import Refused

MEDIAN = {"median": {"quantity": "error", "arm": "a", "at": {"n": 10}}}
TIGHT = {("a", 10, "error"): [0.30, 0.31, 0.29, 0.305, 0.295, 0.3, 0.302, 0.298]}


def test_the_four_verdicts():
    assert verdict(MEDIAN, {"at_least": 0.2}, TIGHT, refuted_if={"below": 0.1}).verdict == "supported"
    assert verdict(MEDIAN, {"at_most": 0.2}, TIGHT).verdict == "refuted"
    between = verdict(MEDIAN, {"at_least": 0.5}, TIGHT, refuted_if={"below": 0.1})
    assert between.verdict == "undecided" and "between" in between.reason
    wide = {("a", 10, "error"): [0.0, 0.9, 0.1, 0.8, 0.3, 0.6, 0.2, 0.7]}
    assert verdict(MEDIAN, {"at_least": 0.3}, wide).verdict == "undecided"
    assert verdict(MEDIAN, {"above": 0}, {("b", 10, "error"): [1]}).verdict == "missing"
    one = verdict(MEDIAN, {"above": 0}, {("a", 10, "error"): [0.4]})
    assert one.verdict == "undecided" and one.as_json()["interval"] == [None, None]


def test_divergence_and_unmet_conditions_are_void_with_a_reason():
    broken = {("a", 10, "error"): [0.3, math.nan, 0.2]}
    found = verdict(MEDIAN, {"above": 0}, broken)
    assert found.verdict == "void" and "seeds 1 of arm a" in found.reason
    unmet = verdict(
        MEDIAN,
        {"above": 0},
        TIGHT | {("a", 10, "loss"): [0.5] * 8},
        void_unless=[{"quantity": "loss", "arm": "a", "at": {"n": 10}, "at_most": 0.01}],
    )
    assert unmet.verdict == "void" and "needs loss of a ≤ 0.01, its median is 0.5" in unmet.reason
    two = verdict(
        {"median": {"quantity": "error", "arm": "a"}}, {"above": 0}, TIGHT | {("a", 20, "error"): [1]}
    )
    assert two.verdict == "void" and "say which one" in two.reason


def test_a_rise_counts_seeds_that_were_lowest_early_and_ended_higher():
    early, late, small = [0.5, 0.2, 0.3, 0.3, 0.4], [0.5, 0.4, 0.3, 0.2, 0.3], [0.5, 0.2, 0.21, 0.22, 0.22]
    test = {"rise": {"quantity": "error", "arm": "a", "before": 0.25, "at_least": 0.03}}
    for seeds, share in (([early] * 8, 1.0), ([early, late], 0.5), ([late, small], 0.0)):
        found = verdict(test, {"at_least": 0.6}, {("a", 10, "error"): seeds})
        assert found.interval.estimate == share
    found = verdict(test, {"at_least": 0.6}, {("a", 10, "error"): [early] * 8})
    assert found.verdict == "supported" and found.interval.low == pytest.approx(0.025 ** (1 / 8))
    for wrong in ({"before": 2, "at_least": 0.03}, {"at_least": 0.03}, {"before": 0.1}):
        with pytest.raises(Refused):
            verdict({"rise": {"quantity": "error", "arm": "a", **wrong}}, {"at_least": 0.6}, TIGHT)


def test_paired_tests_pair_by_seed():
    rng = np.random.default_rng(0)
    seed_effect = rng.normal(0, 10, 12)
    values = {("a", 10, "error"): list(seed_effect), ("b", 10, "error"): list(seed_effect + 0.5)}
    pair = {"quantity": "error", "arm": "a", "versus": "b", "at": {"n": 10}}
    found = verdict({"difference": pair}, {"below": 0}, values)
    assert found.verdict == "supported"
    assert found.interval.estimate == pytest.approx(-0.5) and found.interval.high < -0.49
    share = verdict({"lower": pair}, {"at_least": 0.9}, values, refuted_if={"below": 0.5})
    assert share.interval.estimate == 1 and share.verdict == "supported"
    positive = {k: [abs(v) + 1 for v in vs] for k, vs in values.items()}
    ratio = verdict({"ratio": pair}, {"above": 0}, positive)
    wanted = np.median(np.array(positive["a", 10, "error"]) / np.array(positive["b", 10, "error"]))
    assert ratio.interval.estimate == pytest.approx(wanted)


def test_matched_comparison_takes_the_first_step_at_the_level():
    values = {
        ("a", 10, "loss"): [[1.0, 0.4, 0.1], [1.0, 0.09, 0.01]],
        ("a", 10, "error"): [[0.9, 0.5, 0.3], [0.8, 0.2, 0.6]],
    }
    test = {"median": MEDIAN["median"] | {"when": {"quantity": "loss", "at_most": 0.1}}}
    assert verdict(test, {"above": 0}, values).interval.estimate == pytest.approx((0.3 + 0.2) / 2)
    never = {"median": MEDIAN["median"] | {"when": {"quantity": "loss", "at_most": 0.05}}}
    found = verdict(never, {"above": 0}, values)
    assert found.verdict == "void" and "seeds 0 of arm a never reach loss" in found.reason
    with pytest.raises(Refused, match="give at_most"):
        verdict(
            {"median": MEDIAN["median"] | {"when": {"quantity": "loss", "above": 1}}}, {"above": 0}, values
        )


def test_spread_and_rank_correlation_over_a_sweep():
    values = {}
    for n, level in ((10, 0.4), (20, 0.2), (30, 0.0)):
        values["a", n, "error"] = [level + 0.001 * s for s in range(8)]
        values["a", n, "trace"] = [22 + 0.01 * s + (5 if n == 30 else 0) for s in range(8)]
    spread = {"quantity": "error", "arm": "a", "over": "n"}
    whole = verdict({"spread": spread}, {"at_least": 0.3}, values)
    assert whole.interval.estimate == pytest.approx(0.4) and whole.verdict == "supported"
    among = {"among": {"quantity": "trace", "divided_by": 22, "at_most": 1.05}}
    part = verdict({"spread": spread | among}, {"at_least": 0.3}, values)
    assert part.interval.estimate == pytest.approx(0.2)
    tau = verdict({"rank_correlation": {"x": "trace", "y": "error", "arm": "a"}}, {"below": 0}, values)
    x = np.array([values["a", n, "trace"] for n in (10, 20, 30)]).ravel()
    y = np.array([values["a", n, "error"] for n in (10, 20, 30)]).ravel()
    assert tau.interval.estimate == pytest.approx(scipy_stats.kendalltau(x, y).statistic)


def test_shares_have_exact_intervals():
    values = {("a", 10, "error"): [0.0] * 7 + [0.2]}
    test = {"share": MEDIAN["median"] | {"at_most": 0.01}}
    found = verdict(test, {"above": 0.5}, values)
    assert found.interval.estimate == 7 / 8
    assert found.interval.low == pytest.approx(0.4735, abs=1e-4)
    assert found.verdict == "undecided"


def test_verdicts_are_reproducible():
    one, two = (verdict(MEDIAN, {"above": 0.3}, TIGHT).as_json() for _ in range(2))
    assert one == two


def test_tables_keep_every_bit(tmp_path):
    rows = [
        Row("a, b", (("n", "10"),), 0, 5, "loss", value, 0.1 + 0.2)
        for value in (0.1 + 0.2, 1e-308, math.inf, -0.0, math.nan, 1 / 3)
    ]
    path = tmp_path / "t.csv"
    path.write_text(results.write(rows, ("n",)))
    back = results.read(path).rows
    assert [repr(r) for r in back] == [repr(r) for r in rows]


def test_a_quantity_may_be_divided_by_another_of_the_same_run():
    values = {("a", 10, "error"): [2.0, 6.0, 12.0], ("a", 10, "loss"): [1.0, 2.0, 3.0]}
    test = {"median": {"quantity": "error", "arm": "a", "at": {"n": 10}, "divided_by": "loss"}}
    found = verdict(test, {"above": 0}, values)
    assert found.interval.estimate == 3 and found.interval.n == 3
    share = {"share": test["median"] | {"at_least": 2.5}}
    assert verdict(share, {"above": 0}, values).interval.estimate == pytest.approx(2 / 3)
    gate = {"quantity": "error", "arm": "a", "at": {"n": 10}, "divided_by": "loss", "at_most": 2.5}
    unmet = verdict(MEDIAN, {"above": 0}, values, void_unless=[gate])
    assert unmet.verdict == "void" and "its median is 3" in unmet.reason
    two = values | {("b", 10, "error"): [3.0, 8.0, 12.0], ("b", 10, "loss"): [1.0, 2.0, 4.0]}
    pair = {"quantity": "error", "arm": "b", "versus": "a", "at": {"n": 10}, "divided_by": "loss"}
    assert verdict({"difference": pair}, {"above": 0}, two).interval.estimate == 1  # of 1, 1 and -1
    assert verdict({"lower": pair}, {"above": 0}, two).interval.estimate == pytest.approx(1 / 3)
    none = verdict(test, {"above": 0}, values | {("a", 10, "loss"): [1.0, 0.0, 3.0]})
    assert none.verdict == "void" and "loss of a is 0: there is no ratio" in none.reason
    with pytest.raises(Refused, match=r"divided_by: 'los' is not measured.*did you mean 'loss'"):
        verdict({"median": test["median"] | {"divided_by": "los"}}, {"above": 0}, values)
    with pytest.raises(Refused, match="divided_by"):
        verdict({"median": test["median"] | {"divided_by": 0}}, {"above": 0}, values)


def test_a_firm_verdict_says_how_likely_other_seeds_give_it_again():
    values = {("a", 10, "error"): list(np.linspace(0.0, 1.0, 20))}
    mean = {"mean": {"quantity": "error", "arm": "a", "at": {"n": 10}}}
    far, near = verdict(mean, {"above": 0.1}, values), verdict(mean, {"above": 0.34}, values)
    assert far.same_again > 0.99 and 0.5 < near.same_again < 0.65
    assert near.as_json()["same_again"] == near.same_again
    one = verdict(mean, {"above": 0.34}, values, sides="one")
    exact = scipy_stats.norm.cdf(
        (one.interval.low - 0.34) / (0.5 - one.interval.low) * scipy_stats.norm.ppf(0.95) / 2**0.5
    )
    assert one.same_again == pytest.approx(exact, rel=1e-6) and one.same_again > near.same_again
    assert verdict(mean, {"above": 0.5}, values).same_again is None  # undecided
    shares = {"lower": {"quantity": "error", "arm": "a", "versus": "b", "at": {"n": 10}}}
    values |= {("b", 10, "error"): [2.0] * 20}
    often = verdict(shares, {"at_least": 0.9}, values, refuted_if={"below": 0.5})
    always = verdict(shares, {"at_least": 1}, values, refuted_if={"below": 0.5})
    assert 0.9 < often.same_again < 1 and always.verdict == "supported" and always.same_again is None
