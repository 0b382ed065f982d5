"""Rank statistics, information and sign errors against SciPy, pandas, scikit-learn and hand-made cases."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import mutual_info_score

from flattrain.lab.statistics.factorial import effect
from flattrain.lab.statistics.granulated import along, granulated, step
from flattrain.lab.statistics.information import conditional_information, normalised_information
from flattrain.lab.statistics.interval import Interval
from flattrain.lab.statistics.kendall import kendall, partial_kendall, stratified_kendall
from flattrain.lab.statistics.sign_error import average, environments, worst
from flattrain.lab.statistics.simpson import reversal
from flattrain.lab.statistics.slope import slopes

GRID = [{"w": w, "d": d, "b": b} for w in ("1", "2", "4") for d in ("1", "2") for b in ("8", "16", "32")]
AXES = ("w", "d", "b")


def test_kendall_is_scipys_and_no_order_is_zero():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 5, 30).astype(float), rng.normal(size=30)
    assert kendall(x, y) == stats.kendalltau(x, y).statistic
    assert kendall(x, np.ones(30)) == 0.0 and kendall(x[:1], y[:1]) == 0.0


def test_partial_kendall_is_kendalls_formula():
    rng = np.random.default_rng(0)
    x, y, z = rng.multivariate_normal([0] * 3, [[1, 0.6, 0.7], [0.6, 1, 0.5], [0.7, 0.5, 1]], size=60).T
    xy, xz, yz = (stats.kendalltau(*p).statistic for p in ((x, y), (x, z), (y, z)))
    wanted = (xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2))
    assert partial_kendall(x, y, [z]) == pytest.approx(wanted)
    assert partial_kendall(x, y, []) == pytest.approx(xy)
    assert partial_kendall(x, y, [2 * x + 1]) == 0.0  # what is given is x itself
    two = partial_kendall(x, y, [z, rng.normal(size=60)])
    assert two == pytest.approx(wanted, abs=0.1) and two != pytest.approx(wanted, abs=1e-6)


def test_stratified_kendall_weighs_strata_by_pairs():
    x = np.array([1.0, 2, 3, 1, 2, 9])
    y = np.array([1.0, 2, 3, 2, 1, 9])
    strata = ["a", "a", "a", "b", "b", "c"]
    assert stratified_kendall(x, y, strata) == pytest.approx((3 * 1 + 1 * -1) / 4)
    assert stratified_kendall(x, y, list(range(6))) == 0.0


def test_simpsons_reversal_is_above_zero_only_if_both_signs_are_certain():
    rng = np.random.default_rng(0)
    centre = np.repeat([0.0, 5.0, 10.0], 8)
    x = centre + rng.normal(size=24)
    y = centre - 0.8 * (x - centre) + 0.3 * rng.normal(size=24)
    pooled, inside = kendall(x, y), stratified_kendall(x, y, centre.tolist())
    assert pooled > 0.3 and inside < -0.5
    found = reversal(Interval(pooled, 0.2, 0.6, 5), Interval(inside, -0.9, -0.4, 5))
    assert found[:3] == pytest.approx((min(pooled, -inside), 0.2, 0.6))
    unsure = reversal(Interval(pooled, -0.1, 0.6, 5), Interval(inside, -0.9, -0.4, 5))
    assert unsure.low == pytest.approx(-0.1) and unsure.high == pytest.approx(0.6)
    agree = reversal(Interval(0.5, 0.2, 0.6, 5), Interval(0.3, 0.1, 0.4, 5))
    assert agree.estimate == pytest.approx(-0.3) and agree.high == pytest.approx(-0.1)


def test_granulated_kendall_is_the_mean_over_groups_of_a_table():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(GRID)
    frame["x"], frame["y"] = rng.normal(size=(2, 18))
    parts = []
    for axis in AXES:
        rest = [a for a in AXES if a != axis]
        taus = [stats.kendalltau(g.x, g.y).statistic for _, g in frame.groupby(rest)]
        parts.append(np.mean(taus))
        assert along(frame.x.to_numpy(), frame.y.to_numpy(), GRID, axis) == pytest.approx(parts[-1])
    found = granulated(frame.x.to_numpy(), frame.y.to_numpy(), GRID, AXES)
    assert found == pytest.approx(np.mean(parts))
    assert step(GRID, ["d"]) == pytest.approx(2 / 9)  # nine pairs, each 1 or −1
    assert step(GRID, ["w"]) == pytest.approx(2 / 3 / 6)  # six groups of three pairs
    assert step(GRID, AXES) == pytest.approx(2 / 9 / 3) and step(GRID[:1], AXES) == 0


def test_a_measure_that_follows_one_axis_has_a_small_granulated_coefficient():
    w = np.array([float(s["w"]) for s in GRID])
    y = w + 0.01 * np.arange(18) % 0.37
    assert kendall(w, y) > 0.7
    assert granulated(w, y, GRID, AXES) == pytest.approx(1 / 3)  # 1 along w, 0 along d and b
    assert granulated(w, y, GRID[:1], AXES) == 0.0


def information_by_hand(x, y, given):
    """I(V_x; V_y | U)/H(V_y | U) with scikit-learn's information in each cell."""
    rows = [
        (
            tuple(GRID[i][a] for a in given),
            tuple(GRID[j][a] for a in given),
            x[i, s] > x[j, s],
            y[i, s] > y[j, s],
        )
        for s in range(x.shape[1])
        for i, j in itertools.permutations(range(18), 2)
    ]
    cells = pd.DataFrame(rows, columns=["one", "two", "x", "y"]).groupby(["one", "two"])
    information = sum(len(g) * mutual_info_score(g.x, g.y) for _, g in cells)
    entropy = sum(len(g) * mutual_info_score(g.y, g.y) for _, g in cells)
    return information / entropy


def test_conditional_information_is_the_smallest_over_two_axes():
    x, noise = np.random.default_rng(0).normal(size=(2, 18, 3))
    y = x + noise
    sets = [(), *((a,) for a in AXES), *itertools.combinations(AXES, 2)]
    by_hand = {given: information_by_hand(x, y, given) for given in sets}
    for given, wanted in by_hand.items():
        assert normalised_information(x, y, GRID, given) == pytest.approx(wanted)
    assert conditional_information(x, y, GRID, AXES) == pytest.approx(list(by_hand.values()))
    assert conditional_information(x, np.exp(x), GRID, AXES).min() == pytest.approx(1)
    assert conditional_information(x, -x, GRID, AXES).min() == pytest.approx(1)


def test_a_copy_of_an_axis_says_nothing_once_the_axis_is_known():
    w = np.array([[float(s["w"])] * 4 for s in GRID])
    y = w + 0.3 * np.random.default_rng(0).normal(size=w.shape)
    assert normalised_information(w, y, GRID, ()) > 0.3
    assert conditional_information(w, y, GRID, AXES).min() == pytest.approx(0, abs=1e-12)


def test_the_worst_environment_finds_the_axis_on_which_a_measure_fails():
    w, d = (np.array([[float(s[a])] * 6 for s in GRID]) for a in ("w", "d"))
    b = np.array([[float(s["b"])] * 6 for s in GRID])
    y = w + 0.3 * d + 0.001 * b
    x = w - 0.3 * d + 0.001 * b  # right along w and b, wrong along d
    found = environments(x, y, GRID, AXES)
    errors = {(e.axis, e.values): e.errors.mean() for e in found}
    assert len(errors) == 3 + 1 + 3
    assert errors["d", ("1", "2")] == 1 and sum(errors.values()) == 1
    assert worst(found).estimate == 1 and average(found).estimate == pytest.approx(1 / 7)
    assert worst(found).low == pytest.approx(stats.beta.ppf(0.025 / 7, 6, 1))
    assert [e.errors.mean() for e in environments(x, -y, GRID, ("d",))] == [0]
    tied = environments(np.zeros_like(x), y, GRID, ("w",))
    assert all(np.all(e.errors == 0.5) for e in tied)


def test_pairs_whose_order_is_within_noise_lose_their_weight():
    settings = [{"w": "1", "d": "1"}, {"w": "2", "d": "1"}, {"w": "1", "d": "2"}, {"w": "2", "d": "2"}]
    x = np.array([[0.0], [1.0], [0.0], [1.0]])
    y = np.array([[0.30], [0.33], [0.50], [0.40]])  # the measure is right at d=1, wrong at d=2
    weights = [max(0, 1 - 2 * np.exp(-2 * 1000 * (g / 2) ** 2)) ** 2 for g in (0.03, 0.1)]
    (found,) = environments(x, y, settings, ("w",), examples=1000)
    assert found.errors[0] == pytest.approx(weights[1] / sum(weights))
    assert np.isnan(environments(x, y, settings, ("w",), examples=10)[0].errors).all()


def test_the_worst_environments_interval_covers():
    rng = np.random.default_rng(0)
    settings = [{"a": a, "b": b} for a in "12" for b in "12"]
    hits = 0
    for _ in range(300):
        x, y = rng.normal(size=(2, 4, 8))
        found = worst(environments(x, y, settings, ("a", "b")))
        hits += found.low <= 0.5 <= found.high
    assert hits >= 285


def test_slopes_are_scipys_and_need_an_x_that_varies():
    x, y = np.random.default_rng(0).normal(size=(2, 5, 4))
    wanted = [stats.linregress(x[:, s], y[:, s]).slope for s in range(4)]
    assert slopes(x, y) == pytest.approx(wanted)
    assert np.isnan(slopes(np.ones((5, 4)), y)).all()


def test_effects_are_those_of_the_regression_on_two_factors():
    cells = np.random.default_rng(0).normal(size=(2, 2, 6))
    r, c = (f.ravel() for f in np.meshgrid([0.0, 1.0], [0.0, 1.0], indexing="ij"))
    dummies = np.stack([np.ones(4), r, c, r * c], 1)
    centred = np.stack([np.ones(4), r - 0.5, c - 0.5, (r - 0.5) * (c - 0.5)], 1)
    y = cells.reshape(4, 6)
    interaction = np.linalg.lstsq(dummies, y)[0][3]
    rows, columns = np.linalg.lstsq(centred, y)[0][1:3]
    assert effect(cells, "interaction") == pytest.approx(interaction)
    assert effect(cells, "rows") == pytest.approx(rows)
    assert effect(cells, "columns") == pytest.approx(columns)


@pytest.mark.parametrize("n", [2, 3, 7, 40, 299, 301])
def test_tau_is_scipys_to_the_bit_for_few_runs_as_for_many(n):
    rng = np.random.default_rng(n)
    for levels in (2, 5, 1000):
        for _ in range(20):
            x, y = rng.integers(0, levels, n) * 0.1, rng.integers(0, levels, n) * 1e-9 + rng.normal()
            wanted = stats.kendalltau(x, y).statistic
            assert kendall(x, y) == (0.0 if np.isnan(wanted) else wanted)
    assert kendall(np.arange(n) * 1.0, np.full(n, np.nan)) == 0.0
