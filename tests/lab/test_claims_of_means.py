"""Means over seeds, their ratios and slopes, and changes from one arm to another, by hand."""

from __future__ import annotations

import numpy as np
import pytest
from claimed import verdict
from scipy import stats

from flattrain.ranges import Refused

ERROR, TRACE = [0.3, -0.1, 0.5, 0.2, 0.6], [1.0, 2.0, 3.0, 2.0, 1.5]
TABLE = {("a", 10, "error"): ERROR, ("a", 10, "trace"): TRACE}
AT = {"arm": "a", "at": {"n": 10}}


def jackknifed(statistic, n):
    left = np.array([statistic(np.delete(np.arange(n), i)) for i in range(n)])
    error = ((n - 1) / n * np.sum((left - left.mean()) ** 2)) ** 0.5
    return stats.t.ppf(0.975, n - 1) * error


def test_the_mean_has_students_interval():
    found = verdict({"mean": {"quantity": "error", "divided_by": 2} | AT}, {"above": 0}, TABLE).interval
    wanted = stats.t.interval(0.95, 4, np.mean(ERROR) / 2, stats.sem(ERROR) / 2)
    assert found.estimate == pytest.approx(0.15)
    assert [found.low, found.high] == pytest.approx(list(wanted))


def test_a_ratio_of_means_is_not_the_mean_of_ratios():
    e, t = np.array(ERROR), np.array(TRACE)
    test = {"mean_ratio": {"quantity": "error", "reference": "trace", "divided_by": 0.5} | AT}
    found = verdict(test, {"above": 0}, TABLE).interval
    assert found.estimate == pytest.approx(2 * e.mean() / t.mean())
    half = jackknifed(lambda s: 2 * e[s].mean() / t[s].mean(), 5)
    assert [found.low, found.high] == pytest.approx([found.estimate - half, found.estimate + half])
    nothing = TABLE | {("a", 10, "trace"): [1, -1, 1, -1, 0]}
    assert "there is no ratio" in verdict(test, {"above": 0}, nothing).reason
    for wrong in ({}, {"reference": "nosuch"}, {"reference": 1.0}):
        with pytest.raises(Refused):
            verdict({"mean_ratio": {"quantity": "error", **wrong} | AT}, {"above": 0}, TABLE)


def test_the_slope_of_the_means_takes_seeds_of_either_sign():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=8)
    noise -= noise.mean()
    values = {("a", n, "error"): (5 / n**2 + noise * 10 / n).tolist() for n in (10, 20, 30)}
    assert min(values["a", 30, "error"]) < 0
    test = {"mean_slope": {"x": "n", "y": "error", "log": "xy", "arm": "a"}}
    assert verdict(test, {"below": 0}, values).reason.startswith("the mean of error is not positive")
    values = {("a", n, "error"): (5 / n**2 * (1 + 0.3 * noise)).tolist() for n in (10, 20, 30)}
    found = verdict(test, {"between": [-2.1, -1.9]}, values)
    assert found.interval.estimate == pytest.approx(-2) and found.verdict == "supported"
    plain = verdict({"mean_slope": {"x": "n", "y": "error", "arm": "a"}}, {"below": 0}, values).interval
    means = [np.mean(values["a", n, "error"]) for n in (10, 20, 30)]
    assert plain.estimate == pytest.approx(stats.linregress([10, 20, 30], means).slope)
    flat = {("a", 10, "error"): [1, 2, 3]}
    assert "does not vary" in verdict(test, {"below": 0}, flat).reason


CHANGED = {
    ("a", 10, "error"): [1.0, 2.0, 3.0], ("b", 10, "error"): [0.5, 2.5, 2.0],  # +, −, +
    ("a", 20, "error"): [1.0, 1.0, 1.0], ("b", 20, "error"): [2.0, 0.5, 1.0],  # −, +, 0
    ("b", 10, "trace"): [1.5, 0.5, 0.9], ("b", 20, "trace"): [0.5, 1.2, 2.0],
    ("a", 10, "loss"): [0.1, 0.1, 0.1], ("b", 10, "loss"): [0.0, 0.2, 0.3],
    ("a", 20, "loss"): [0.1, 0.1, 0.1], ("b", 20, "loss"): [0.2, 0.0, 0.1],
    ("a", 30, "error"): [9.0, 9.0, 9.0],
}  # fmt: skip
PAIR = {"arm": "a", "versus": "b"}


def test_signs_agree_over_the_grid_points_that_both_arms_have():
    test = {"sign_agreement": {"quantity": "error", "x": "trace", "threshold": 1} | PAIR}
    found = verdict(test, {"above": 0}, CHANGED).interval
    # seed 0: both, seed 1: both, seed 2: neither (against, and no change)
    assert found.estimate == pytest.approx(2 / 3) and found.n == 3
    at_ten = verdict({"sign_agreement": test["sign_agreement"] | {"at": {"n": 10}}}, {"above": 0}, CHANGED)
    assert at_ten.interval.estimate == pytest.approx(2 / 3)
    without = {"sign_agreement": {"quantity": "error", "x": "trace"} | PAIR}  # every trace is above 0
    assert verdict(without, {"above": 0}, CHANGED).interval.estimate == pytest.approx((0.5 + 0.5 + 0.5) / 3)
    with pytest.raises(Refused):
        verdict({"sign_agreement": {"quantity": "error", "x": "n"} | PAIR}, {"above": 0}, CHANGED)
    alone = {"sign_agreement": {"quantity": "error", "x": "trace"} | PAIR | {"at": {"n": 30}}}
    assert verdict(alone, {"above": 0}, CHANGED).verdict == "missing"


def test_changes_are_correlated_with_what_the_other_arm_has():
    test = {"change_correlation": {"quantity": "error", "x": "trace"} | PAIR}
    found = verdict(test, {"above": 0}, CHANGED).interval
    change, x = [0.5, -0.5, 1.0, -1.0, 0.5, 0.0], [1.5, 0.5, 0.9, 0.5, 1.2, 2.0]
    assert found.estimate == pytest.approx(stats.kendalltau(x, change).statistic)


def test_how_large_changes_are_beside_others():
    test = {"change_ratio": {"quantity": "loss", "reference": "error"} | PAIR}
    found = verdict(test, {"below": 1}, CHANGED).interval
    assert found.estimate == pytest.approx((0.1 + 0.1 + 0.2 + 0.1 + 0.1 + 0) / (0.5 + 0.5 + 1 + 1 + 0.5 + 0))
    still = CHANGED | {("b", n, "error"): CHANGED["a", n, "error"] for n in (10, 20)}
    assert verdict(test, {"below": 1}, still).verdict == "void"
