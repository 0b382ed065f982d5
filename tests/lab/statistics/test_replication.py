"""The probability that other seeds give the same verdict: a closed form, and two blocks of seeds drawn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from flattrain.lab.statistics.interval import Interval
from flattrain.lab.statistics.replication import same_again
from flattrain.lab.statistics.share import share
from flattrain.lab.statistics.student import student

Z = float(stats.norm.ppf(0.975))


def test_one_bound_has_a_closed_form():
    found = Interval(1.0, 0.4, 1.2, 8)  # the side of the bound counts: s = 0.6/z
    for bound in (0.4, 0.2, -0.5):
        exact = stats.norm.cdf((found.low - bound) / (math.sqrt(2) * 0.6 / Z))
        assert same_again(found, 0.95, lambda other, b=bound: other.low > b, [bound]) == pytest.approx(exact)


def test_without_a_finite_end_nothing_is_said():
    assert math.isnan(same_again(Interval(1.0, -math.inf, 2.0, 2), 0.95, lambda other: True, []))


@pytest.mark.parametrize("seeds", [8, 20])
def test_it_is_how_often_a_second_block_of_seeds_agrees(seeds):
    draw = np.random.default_rng(0)
    truth = draw.uniform(-3, 3, (4000, 1, 1))
    x = truth + draw.standard_normal((4000, 2, seeds))
    half = student(0.95, seeds) * x.std(-1, ddof=1) / math.sqrt(seeds)
    said, agreed = [], []
    for (m, other), (h, other_half) in zip(x.mean(-1), half, strict=True):
        if abs(m) > h:
            sign = math.copysign(1, m)
            found = Interval(sign * m, sign * m - h, sign * m + h, seeds)
            said.append(same_again(found, 0.95, lambda i: i.low > 0, [0]))
            agreed.append(sign * other > other_half)
    said, agreed = np.array(said), np.array(agreed)
    assert abs(said.mean() - agreed.mean()) < 0.03
    close = said < 0.8
    assert close.sum() > 200 and abs(said[close].mean() - agreed[close].mean()) < 0.08


@pytest.mark.parametrize(("k", "n", "at_least"), [(8, 8, 0.8), (7, 8, 0.5), (20, 20, 0.9)])
def test_a_share_is_counted_by_its_beta_binomial_distribution(k, n, at_least):
    draw = np.random.default_rng(1)
    again = draw.binomial(n, draw.beta(k + 0.5, n - k + 0.5, 100_000)) / n
    said = same_again(share(k, n), 0.95, lambda other: other.estimate >= at_least, [])
    assert said == pytest.approx((again >= at_least).mean(), abs=0.005)


def test_between_two_bounds_and_without_a_width():
    found = Interval(0.0, -1.0, 1.0, 8)
    inside = same_again(found, 0.95, lambda other: other.low > -3 and other.high < 2, [-3, 2])
    s = math.sqrt(2) / Z
    assert inside == pytest.approx(stats.norm.cdf(1 / s) - stats.norm.cdf(-2 / s))
    exactly = Interval(1.0, 1.0, 1.0, 8)
    assert same_again(exactly, 0.95, lambda other: other.estimate >= 1, [1]) == 1
    above = Interval(1.0, 1.0, 2.0, 8)
    assert same_again(above, 0.95, lambda other: other.high < 2.5, [2.5]) == pytest.approx(
        0.5 + stats.norm.cdf(0.5 / s) - 0.5
    )
