"""Intervals against SciPy, exact sums and simulations with known truth, with few seeds and with many."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from flattrain.lab.statistics.bootstrap import bootstrap
from flattrain.lab.statistics.interval import Interval
from flattrain.lab.statistics.jackknife import jackknife, jackknife_of_smallest
from flattrain.lab.statistics.kendall import kendall, partial_kendall
from flattrain.lab.statistics.mean import mean
from flattrain.lab.statistics.median import median
from flattrain.lab.statistics.seeds_needed import seeds_needed
from flattrain.lab.statistics.share import share

SEEDS = (5, 8, 20, 50)
DRAWS = {
    "normal": (lambda rng, shape: rng.normal(size=shape), 0.0),
    "exponential": (lambda rng, shape: rng.exponential(size=shape), math.log(2)),
    "uniform": (lambda rng, shape: rng.uniform(-1, 1, size=shape), 0.0),
}


def covered(intervals, truth):
    return float(np.mean([i.low <= truth <= i.high for i in intervals]))


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("n", SEEDS)
def test_the_interval_of_a_median_covers_with_few_seeds(name, n):
    draw, truth = DRAWS[name]
    samples = draw(np.random.default_rng(n), (2500, n))
    assert 0.93 <= covered((median(x) for x in samples), truth) <= 0.97


def test_the_interval_of_a_median_lies_between_order_statistics():
    x = np.arange(8.0)  # depth 1 reaches 99.2 %, depth 2 reaches 93.0 %
    at = {d: 1 - 2 * stats.binom.cdf(d - 1, 8, 0.5) for d in (1, 2)}
    for depth in (1, 2):
        found = median(x, at[depth])
        assert found.low == pytest.approx(depth - 1) and found.high == pytest.approx(8 - depth)
    between = median(x)
    assert 0 < between.low < 1 and between.high == pytest.approx(7 - between.low)
    assert between.estimate == 3.5 and between.n == 8


def test_five_seeds_reach_no_level_of_95_and_the_interval_says_so_by_its_width():
    x = np.array([0.0, 1.0, 2.0, 3.0, 10.0])
    low, high = stats.t.interval(0.95, 4, loc=x.mean(), scale=stats.sem(x))
    found = median(x)
    assert found.low == pytest.approx(min(0.0, low)) and found.high == pytest.approx(max(10.0, high))
    assert median(x, 0.9).high < 10
    assert median(x[:1]) == Interval(0.0, -np.inf, np.inf, 1)
    assert median(np.full(5, 0.25))[:3] == (0.25, 0.25, 0.25)


@pytest.mark.parametrize("n", SEEDS)
def test_a_share_is_covered_at_least_as_often_as_said(n):
    found = [share(k, n) for k in range(n + 1)]
    for k, interval in enumerate(found):
        exact = stats.binomtest(k, n).proportion_ci(0.95, method="exact")
        assert interval[:3] == pytest.approx((k / n, exact.low, exact.high))
    for p in np.linspace(0.01, 0.99, 99):
        held = np.array([i.low <= p <= i.high for i in found])
        assert stats.binom.pmf(np.arange(n + 1), n, p) @ held >= 0.95


def test_a_share_of_fractions_is_covered_too():
    rng = np.random.default_rng(0)
    parts = rng.beta(0.6, 1.4, size=(2000, 6))  # mean 0.3
    assert covered((share(float(x.sum()), 6) for x in parts), 0.3) >= 0.95


def test_the_mean_is_students():
    x = np.random.default_rng(0).normal(size=7)
    for level in (0.9, 0.95, 0.999):
        exact = stats.t.interval(level, 6, loc=x.mean(), scale=stats.sem(x))
        assert mean(x, level)[1:3] == pytest.approx(exact)
    assert mean(x[:1]).high == np.inf


def test_the_jackknife_of_a_mean_is_students_interval_and_of_a_variance_has_no_bias():
    x = np.random.default_rng(0).normal(size=9)
    assert jackknife(lambda s: float(x[s].mean()), 9)[:3] == pytest.approx(mean(x)[:3])
    found = jackknife_of_smallest(lambda s: np.array([x[s].var(), 7]), 9)
    assert found.estimate == pytest.approx(x.var(ddof=1))
    for alone in (jackknife(lambda s: 0.5, 1), jackknife_of_smallest(lambda s: np.array([0.5, 2]), 1)):
        assert alone == (0.5, -np.inf, np.inf, 1, False)


@pytest.mark.parametrize("n", [5, 8, 20])
@pytest.mark.parametrize("truths", [(0.0, 0.1, 0.3), (0.0, 0.5, 1.0)])
def test_the_smallest_of_three_means_is_covered_though_another_may_be_taken_for_it(n, truths):
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(1500):
        x = rng.normal(size=(n, 3)) + truths
        found = jackknife_of_smallest(lambda s, x=x: x[s].mean(0), n)
        held += found.low <= 0 <= found.high
    assert 0.94 <= held / 1500 <= 0.98


def correlated(rng, n, points, matrix):
    """Variables `(points, n)` with seed effects and noise of the same correlation matrix."""
    root = np.linalg.cholesky(matrix)
    draw = 0.6 * rng.normal(size=(3, 1, n)) + 0.8 * rng.normal(size=(3, points, n))
    return np.einsum("ij,jpn->ipn", root, draw)


@pytest.mark.parametrize(("n", "repeats"), [(5, 240), (8, 120), (20, 60), (50, 30)])
def test_rank_correlations_over_clusters_cover(n, repeats):
    """Of normal variables τ = (2/π) asin ρ, for pairs within a seed as for pairs across."""
    rng = np.random.default_rng(n)
    rho = np.array([[1, 0.5, 0.4], [0.5, 1, 0.3], [0.4, 0.3, 1]])
    tau = 2 / np.pi * np.arcsin(rho)
    q = np.linalg.inv(tau)
    truth = {"pooled": tau[0, 1], "partial": -q[0, 1] / math.sqrt(q[0, 0] * q[1, 1])}
    found = {"pooled": [], "partial": []}
    for k in range(repeats):
        x, y, z = correlated(rng, n, 3, rho)
        found["pooled"].append(jackknife(lambda s, x=x, y=y: kendall(x[:, s].ravel(), y[:, s].ravel()), n))
        if k % 3 == 0 and n < 20:
            found["partial"].append(
                jackknife(
                    lambda s, x=x, y=y, z=z: partial_kendall(
                        x[:, s].ravel(), y[:, s].ravel(), [z[:, s].ravel()]
                    ),
                    n,
                )
            )
    noise = 2.5 * math.sqrt(0.95 * 0.05 / repeats)
    assert 0.94 - noise <= covered(found["pooled"], truth["pooled"]) <= 0.96 + noise
    if found["partial"]:
        noise *= math.sqrt(3)
        assert 0.94 - noise <= covered(found["partial"], truth["partial"]) <= 0.96 + noise


@pytest.mark.parametrize("n", [8])
def test_the_bootstrap_covers_a_spread_of_medians(n):
    rng = np.random.default_rng(n)
    found = []
    for k in range(150):
        x = rng.normal(size=(3, n)) + 0.7 * rng.normal(size=n) + np.array([[0.0], [2.0], [4.0]])
        spread = lambda s, x=x: float(np.ptp(np.median(x[:, s], axis=1)))  # noqa: E731
        found.append(bootstrap(spread, n, str(k), resamples=199))
    assert 0.92 <= covered(found, 4.0) <= 0.99


def test_the_bootstrap_is_scipys_at_the_expanded_level_and_repeats_itself():
    x = np.random.default_rng(0).normal(size=6)
    statistic = lambda s: float(x[s].mean())  # noqa: E731
    one, two = bootstrap(statistic, 6, "a"), bootstrap(statistic, 6, "a")
    assert one == two != bootstrap(statistic, 6, "b")
    tail = stats.norm.cdf(-stats.t.ppf(0.975, 5) * math.sqrt(6 / 5))
    draws = np.random.default_rng(1).choice(x, size=(20000, 6)).mean(1)
    exact = np.quantile(draws, [tail, 1 - tail])
    assert one[1:3] == pytest.approx(exact, abs=0.12)
    assert one.high - one.low > np.ptp(np.quantile(draws, [0.025, 0.975])) * 1.15


def test_seeds_needed_shrink_the_interval_as_the_root():
    found = Interval(1.0, -1.0, 3.0, 10)  # half width 2, so 10 · 2² seeds shrink it to 1
    assert seeds_needed(found, 0.0, None) == 40
    assert seeds_needed(found, None, 2.0) == 40
    assert seeds_needed(found, 0.0, 1.5) == 160
    assert seeds_needed(found, 1.0, None) is None
    assert seeds_needed(found, -5.0, None) == 11
    assert seeds_needed(Interval(1.0, -np.inf, np.inf, 1), 0.0, None) is None
    assert seeds_needed(Interval(1.0, 0.0, 2.0, 5), 0.863, None) == 270  # 266.4, and no more is known
