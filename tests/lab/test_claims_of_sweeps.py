"""Tests of claims that look at many cells at once: from rows to the estimate, against oracles outside."""

from __future__ import annotations

import math

import numpy as np
import pytest
from claimed import claim, interval, table_of, table_of_arrays, verdict
from scipy import stats

from flattrain.lab.results import Row, Table
from flattrain.ranges import Refused

N, SEEDS = (10, 20, 30), 6
XY = {"x": "trace", "y": "error"}


@pytest.fixture(scope="module")
def arrays():
    """{quantity: (arm, n, seed)} with a trend in n, arms apart, and noise."""
    rng = np.random.default_rng(0)
    base = np.array(N)[None, :, None] / 10 + np.array([0.0, 1.5])[:, None, None]
    trace = base + 0.4 * rng.normal(size=(2, 3, SEEDS))
    error = 10 - base + 0.4 * rng.normal(size=(2, 3, SEEDS))
    return {"trace": trace, "error": error, "loss": np.exp(rng.normal(size=(2, 3, SEEDS)))}


@pytest.fixture(scope="module")
def table(arrays):
    return table_of_arrays(arrays)


def tau(x, y):
    return stats.kendalltau(x.ravel(), y.ravel()).statistic


def test_rank_correlation_over_arms_and_of_an_axis(arrays, table):
    x, y = arrays["trace"], arrays["error"]
    assert interval({"rank_correlation": XY}, table).estimate == pytest.approx(tau(x, y))
    assert interval({"rank_correlation": XY | {"arms": ["b"]}}, table).estimate == pytest.approx(
        tau(x[1], y[1])
    )
    one = interval({"rank_correlation": XY | {"arm": "a", "at": {"n": 20}}}, table)
    assert one.estimate == pytest.approx(tau(x[0, 1], y[0, 1])) and one.n == SEEDS
    n = np.broadcast_to(np.array(N)[None, :, None], y.shape)
    axis = interval({"rank_correlation": {"x": "n", "y": "error"}}, table)
    assert axis.estimate == pytest.approx(tau(n, y))
    less = interval({"rank_correlation": XY | {"minus": "n"}}, table)
    assert less.estimate == pytest.approx(tau(x, y) - tau(n, y))


def test_the_interval_of_a_rank_correlation_leaves_out_one_seed_at_a_time(arrays, table):
    x, y = arrays["trace"], arrays["error"]
    left = [tau(np.delete(x, s, 2), np.delete(y, s, 2)) for s in range(SEEDS)]
    error = math.sqrt((SEEDS - 1) * np.var(left))
    found = interval({"rank_correlation": XY}, table)
    half = stats.t.ppf(0.975, SEEDS - 1) * error
    assert (found.low, found.high) == pytest.approx((tau(x, y) - half, tau(x, y) + half))


def test_partial_and_stratified_rank_correlation(arrays, table):
    x, y, z = (arrays[q] for q in ("trace", "error", "loss"))
    xy, xz, yz = tau(x, y), tau(x, z), tau(y, z)
    partial = interval({"partial_rank_correlation": XY | {"given": ["loss"]}}, table)
    assert partial.estimate == pytest.approx((xy - xz * yz) / math.sqrt((1 - xz**2) * (1 - yz**2)))
    strata = [(x[k, j], y[k, j]) for k in range(2) for j in range(3)]
    inside = interval({"stratified_rank_correlation": XY | {"by": ["arm", "n"]}}, table)
    assert inside.estimate == pytest.approx(np.mean([tau(*s) for s in strata]))
    simpson = interval({"simpson": XY | {"by": ["arm", "n"]}}, table)
    wanted = min(abs(xy), abs(inside.estimate)) * (-1 if xy * inside.estimate > 0 else 1)
    assert simpson.estimate == pytest.approx(wanted)


def test_granulated_kendall_is_students_interval_of_each_seeds_own(arrays, table):
    x, y = arrays["trace"], arrays["error"]
    each = []
    for s in range(SEEDS):
        along_n = np.mean([tau(x[k, :, s], y[k, :, s]) for k in range(2)])
        along_arm = np.mean([tau(x[:, j, s], y[:, j, s]) for j in range(3)])
        each.append((along_n + along_arm) / 2)
    found = interval({"granulated_kendall": XY}, table)
    assert found.estimate == pytest.approx(np.mean(each))
    exact = stats.t.interval(0.95, SEEDS - 1, loc=np.mean(each), scale=stats.sem(each))
    half_step = max(2 / 3, 2 / 3 / 2) / 2 / (2 * SEEDS)  # three pairs of arms, two groups of three pairs of n
    wider = (exact[0] - half_step, exact[1] + half_step)
    assert found[1:3] == pytest.approx(np.clip(wider, -1, 1))
    along_n = interval({"granulated_kendall": XY | {"axes": ["n"], "arm": "a"}}, table)
    assert along_n.estimate == pytest.approx(np.mean([tau(x[0, :, s], y[0, :, s]) for s in range(SEEDS)]))


def test_information_and_sign_errors_of_a_perfect_and_a_reversed_measure(table):
    same = {"x": "trace", "y": "trace"}
    assert interval({"conditional_information": same}, table).estimate == pytest.approx(1)
    assert interval({"sign_error": same}, table)[:2] == (0, 0)
    axis = {"x": "n", "y": "n", "axes": ["n"], "environments": "mean"}
    assert interval({"sign_error": axis}, table).estimate == 0
    wrong = interval({"sign_error": {"x": "trace", "y": "error", "axes": ["n"]}}, table)
    assert 0.5 < wrong.estimate <= 1


def test_slope_on_an_axis_and_between_quantities(arrays, table):
    y = np.log(arrays["loss"])[0]
    each = [stats.linregress(np.log(N), y[:, s]).slope for s in range(SEEDS)]
    found = interval({"slope": {"x": "n", "y": "loss", "arm": "a", "log": "xy"}}, table)
    assert found.estimate == pytest.approx(np.mean(each))
    exact = stats.t.interval(0.95, SEEDS - 1, loc=np.mean(each), scale=stats.sem(each))
    assert found[1:3] == pytest.approx(exact)
    x, y = arrays["trace"][1], arrays["error"][1]
    each = [stats.linregress(x[:, s], y[:, s]).slope for s in range(SEEDS)]
    assert interval({"slope": XY | {"arm": "b"}}, table).estimate == pytest.approx(np.mean(each))
    still = verdict({"slope": {"x": "n", "y": "loss", "arm": "a", "at": {"n": 10}}}, {"above": 0}, table)
    assert still.verdict == "void" and "n does not vary" in still.reason
    negative = verdict(
        {"slope": XY | {"log": "y"}},
        {"above": 0},
        table_of({("a", 10, "trace"): [1], ("a", 10, "error"): [0]}),
    )
    assert negative.verdict == "void" and "has no logarithm" in negative.reason


def test_effects_over_two_axes_over_arms_and_over_four_arms(arrays, table):
    y = arrays["error"]
    spec = {"quantity": "error", "rows": {"arm": ["a", "b"]}, "columns": {"n": [10, 30]}}
    rows = y[1, [0, 2]].mean() - y[0, [0, 2]].mean()
    assert interval({"effect": spec | {"of": "rows"}}, table).estimate == pytest.approx(rows)
    both = (y[1, 2] - y[0, 2]) - (y[1, 0] - y[0, 0])
    found = interval({"effect": spec | {"of": "interaction"}}, table)
    assert found.estimate == pytest.approx(both.mean())
    cells = np.random.default_rng(1).normal(size=(4, SEEDS))
    four = table_of({(arm, 10, "error"): list(cells[k]) for k, arm in enumerate("abcd")})
    spec = {"quantity": "error", "cells": [["a", "b"], ["c", "d"]]}
    for of, wanted in {
        "rows": (cells[2] + cells[3] - cells[0] - cells[1]) / 2,
        "columns": (cells[1] + cells[3] - cells[0] - cells[2]) / 2,
        "interaction": cells[3] - cells[1] - cells[2] + cells[0],
    }.items():
        found = interval({"effect": spec | {"of": of}}, four)
        exact = stats.t.interval(0.95, SEEDS - 1, loc=wanted.mean(), scale=stats.sem(wanted))
        assert found[:3] == pytest.approx((wanted.mean(), *exact))


def test_coverage_counts_the_intervals_that_hold_the_reference():
    rng = np.random.default_rng(0)
    rows = []
    for seed in range(40):
        for n in N:
            value = rng.normal(7, 0.5)
            rows.append(Row("a", (("n", str(n)),), seed, 0, "trace", value, 0.5))
            rows.append(Row("a", (("n", str(n)),), seed, 0, "error", 7.0, 0.0))
    table = Table(rows)
    values = np.array([r.value for r in rows if r.quantity == "trace"])
    for z in (1.0, 1.959963984540054):
        found = interval({"coverage": {"quantity": "trace", "reference": 7, "z": z, "arm": "a"}}, table)
        assert found.estimate == pytest.approx(np.mean(np.abs(values - 7) <= z * 0.5))
    by_name = interval({"coverage": {"quantity": "trace", "reference": "error", "arm": "a"}}, table)
    assert by_name.estimate == found.estimate
    single = Table([r if r.seed else Row(*r.__dict__.values()) for r in rows[:-2]])
    missing = verdict({"coverage": {"quantity": "trace", "reference": 7, "arm": "a"}}, {"above": 0}, single)
    assert missing.verdict == "void" and "for every seed" in missing.reason
    unknown = Table([Row("a", (), 0, 0, "trace", 1.0, math.nan)])
    none = verdict({"coverage": {"quantity": "trace", "reference": 7, "arm": "a"}}, {"above": 0}, unknown)
    assert none.verdict == "void" and "no standard error" in none.reason


def test_one_sided_claims_take_the_wider_interval_at_each_end(table):
    test = {"difference": {"quantity": "error", "arm": "a", "versus": "b", "at": {"n": 10}}}
    one = verdict(test, {"above": 0}, table, sides="one", level=0.95)
    two = verdict(test, {"above": 0}, table, level=0.9)
    assert one.interval == pytest.approx(two.interval) and one.as_json()["sides"] == "one"
    wide = verdict(test, {"above": 0}, table, level=0.99)
    assert wide.interval.low < two.interval.low and wide.as_json()["level"] == 0.99


REFUSALS = [
    ({"rank_corelation": XY}, "did you mean 'rank_correlation'"),
    ({"rank_correlation": XY | {"x": "trase"}}, "did you mean 'trace'"),
    ({"rank_correlation": {"x": "kind", "y": "error"}}, "which is not a number"),
    ({"rank_correlation": XY | {"arm": "a", "arms": ["b"]}}, "arm or arms, not both"),
    ({"rank_correlation": XY | {"arms": ["a", "a"]}}, "named twice"),
    ({"rank_correlation": XY | {"arms": "a"}}, "must be a list of arms"),
    ({"partial_rank_correlation": XY}, "given is missing"),
    ({"partial_rank_correlation": XY | {"given": ["error"]}}, "is there twice"),
    ({"partial_rank_correlation": XY | {"given": "n"}}, "must be a list"),
    ({"stratified_rank_correlation": XY | {"by": ["m"]}}, "unknown axis 'm'"),
    ({"simpson": XY}, "by is missing"),
    ({"simpson": XY | {"by": None}}, "by is missing"),
    ({"granulated_kendall": XY | {"axes": []}}, "must be a list of axes"),
    ({"sign_error": XY | {"environments": "wurst"}}, "did you mean 'worst'"),
    ({"sign_error": XY | {"examples": 0}}, "must be a number > 0"),
    ({"slope": XY | {"log": "yx"}}, "must be one of x, y, xy"),
    ({"coverage": {"quantity": "trace", "reference": "tracy"}}, "did you mean 'trace'"),
    ({"effect": {"quantity": "error", "of": "rows", "rows": {"n": [10, 10]}}}, "two different levels"),
    ({"effect": {"quantity": "error", "of": "rows", "rows": {"n": [10, 11]}}}, "11 is not on the grid"),
    ({"effect": {"quantity": "error", "of": "rows", "rows": {"n": [10, 20]}}}, "columns: give one axis"),
    (
        {"effect": {"quantity": "error", "of": "both", "cells": [["a", "b"], ["b", "a"]]}},
        "must be one of rows",
    ),
    ({"effect": {"quantity": "error", "of": "rows", "cells": [["a"], ["b", "a"]]}}, "two rows of two arms"),
    ({"median": {"quantity": "error", "arm": ["a"]}}, "unknown arm"),
]


@pytest.mark.parametrize(("test", "said"), REFUSALS, ids=[said for _, said in REFUSALS])
def test_a_claim_that_cannot_be_judged_is_refused_in_one_line(test, said):
    with pytest.raises(Refused) as error:
        claim(test, {"above": 0})
    assert said in str(error.value) and "\n" not in str(error.value) and "claims.c" in str(error.value)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"level": 95}, "above 0.5 and below 1"),
        ({"level": "high"}, "above 0.5 and below 1"),
        ({"sides": 2}, "must be one or two"),
        ({"setings": "x"}, "did you mean 'setting'"),
    ],
)
def test_levels_and_sides_are_checked(more, said):
    with pytest.raises(Refused, match=said):
        claim({"median": {"quantity": "error", "arm": "a"}}, {"above": 0}, **more)


def test_the_json_of_a_verdict_names_its_setting():
    found = verdict(
        {"median": {"quantity": "error", "arm": "a"}},
        {"above": 0},
        {("a", 10, "error"): [1, 2, 3]},
        setting="nets of width 3",
    )
    assert found.as_json()["setting"] == "nets of width 3"


def test_values_near_the_largest_number_decide_nothing_and_warn_of_nothing():
    huge = {("a", n, q): [1e300, -1e300, 2e300] for n in N for q in ("error", "trace")}
    for test in (
        {"median": {"quantity": "error", "arm": "a", "at": {"n": 10}}},
        {"slope": XY | {"arm": "a"}},
    ):
        assert verdict(test, {"above": 0}, huge).verdict in ("undecided", "void")
