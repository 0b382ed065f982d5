"""Tests of a claim that look at those runs of a sweep that meet a condition."""

from __future__ import annotations

import numpy as np
import pytest
from claimed import claim, interval, table_of, verdict
from scipy import stats

from flattrain.ranges import Refused

N, SEEDS = (10, 20, 30), 5
AMONG = {"quantity": "loss", "at_most": 0.6}


@pytest.fixture(scope="module")
def arrays():
    """{quantity: (n, seed)}; trace and error agree where the loss is small, and only there."""
    rng = np.random.default_rng(3)
    loss = np.array([[0.1, 0.5, 0.9]] * SEEDS).T + 0.05 * rng.random((3, SEEDS))
    trace = rng.normal(size=(3, SEEDS)) + 10
    return {"loss": loss, "trace": trace, "error": np.where(loss < 0.7, trace, -5 * trace) + 100}


@pytest.fixture(scope="module")
def table(arrays):
    return table_of({("a", n, q): list(v[j]) for q, v in arrays.items() for j, n in enumerate(N)})


def test_the_median_is_over_runs_and_then_over_seeds(arrays, table):
    wanted = np.median(np.median(arrays["trace"], 0))
    found = interval({"median_of_runs": {"quantity": "trace", "arm": "a"}}, table)
    assert found.estimate == pytest.approx(wanted) and found.n == SEEDS
    kept = np.median(np.median(arrays["trace"][:2], 0))
    one = interval({"median_of_runs": {"quantity": "trace", "arm": "a", "among": AMONG}}, table)
    assert one.estimate == pytest.approx(kept) and kept != wanted
    scaled = {"quantity": "loss", "divided_by": 2.0, "at_most": 0.3}
    assert interval({"median_of_runs": {"quantity": "trace", "arm": "a", "among": scaled}}, table) == one
    of_itself = {"quantity": "loss", "divided_by": "loss", "at_most": 1}
    every = interval({"median_of_runs": {"quantity": "trace", "arm": "a", "among": of_itself}}, table)
    assert every == found


def test_a_rank_correlation_of_those_runs(arrays, table):
    xy = {"x": "trace", "y": "error", "arm": "a"}
    whole = stats.kendalltau(arrays["trace"].ravel(), arrays["error"].ravel()).statistic
    assert interval({"rank_correlation": xy}, table).estimate == pytest.approx(whole)
    assert whole < 0.9
    assert interval({"rank_correlation": xy | {"among": AMONG}}, table).estimate == pytest.approx(1)


def test_strata_hold_those_runs_alone(arrays, table):
    xy = {"x": "trace", "y": "error", "arm": "a", "by": ["n"]}
    assert interval({"stratified_rank_correlation": xy}, table).estimate == pytest.approx(1 / 3)
    found = interval({"stratified_rank_correlation": xy | {"among": AMONG}}, table)
    assert found.estimate == pytest.approx(1)


def test_a_seed_without_such_runs_voids(table):
    for test in (
        {"median_of_runs": {"quantity": "trace", "arm": "a", "among": {"quantity": "loss", "below": 0.1}}},
        {"rank_correlation": {"x": "trace", "y": "error", "among": {"quantity": "loss", "below": 0.1}}},
    ):
        found = verdict(test, {"above": -1e6}, table)
        assert found.verdict == "void" and "a seed has no run with loss < 0.1" in found.reason


def test_a_condition_is_checked():
    for among, said in (
        ({"quantity": "los", "above": 1}, "did you mean 'loss'"),
        ({"quantity": "loss"}, "exactly one"),
    ):
        for test in (
            {"median_of_runs": {"quantity": "trace", "among": among}},
            {"rank_correlation": {"x": "trace", "y": "error", "among": among}},
        ):
            with pytest.raises(Refused, match=said):
                claim(test, {"above": 0})
