"""How a correlation changes with its variables and along an axis: against SciPy, and with known truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from claimed import SCOPE, interval, table_of, table_of_arrays, verdict
from scipy import stats

from flattrain.lab.claims import read_claims
from flattrain.lab.statistics.pearson import pearson
from flattrain.ranges import Refused

N, SEEDS = (10, 20, 30), 6
XY = {"x": "trace", "y": "error"}


@pytest.fixture(scope="module")
def arrays():
    """{quantity: (arm, n, seed)}; trace and error are tied at n = 10 and less and less after that."""
    rng = np.random.default_rng(0)
    trace, error, loss = rng.normal(size=(3, 2, 3, SEEDS))
    tie = np.array([2.0, 1.0, 0.0])[None, :, None]
    return {"trace": trace, "error": error + tie * trace, "loss": np.exp(loss)}


@pytest.fixture(scope="module")
def table(arrays):
    return table_of_arrays(arrays)


COEFFICIENTS = {
    "kendall": lambda x, y: stats.kendalltau(x.ravel(), y.ravel()).statistic,
    "pearson": lambda x, y: stats.pearsonr(x.ravel(), y.ravel()).statistic,
}


def around(statistic, found):
    """Estimate and ends by leaving out one seed at a time."""
    left = [statistic(np.delete(np.arange(SEEDS), s)) for s in range(SEEDS)]
    half = stats.t.ppf(0.975, SEEDS - 1) * math.sqrt((SEEDS - 1) * np.var(left))
    centre = statistic(np.arange(SEEDS))
    assert found[:3] == pytest.approx((centre, centre - half, centre + half))


def test_pearson_is_scipys_and_of_a_constant_zero():
    x, y = np.random.default_rng(0).normal(size=(2, 30))
    assert pearson(x, y) == pytest.approx(stats.pearsonr(x, y).statistic)
    assert pearson(x, 1e9 + 1e-3 * x) == pytest.approx(1, abs=1e-6)
    assert pearson(x, np.full(30, 0.1)) == 0.0 and pearson(x[:1], y[:1]) == 0.0


@pytest.mark.parametrize("name", COEFFICIENTS)
def test_a_change_is_the_pooled_coefficient_less_that_of_the_other_pair(name, arrays, table):
    coefficient = COEFFICIENTS[name]
    t, e, loss = (arrays[q] for q in ("trace", "error", "loss"))
    test = {"x": ["trace", "loss"], "y": ["error", "error"], "minus": ["loss", "error"], "coefficient": name}

    def statistic(s):
        pooled = coefficient(np.stack([t, loss])[..., s], np.stack([e, e])[..., s])
        return pooled - coefficient(loss[..., s], e[..., s])

    around(statistic, interval({"correlation_change": test}, table))
    one = {"x": "trace", "y": "error", "minus": ["loss", "error"], "coefficient": name, "arm": "b"}
    change = coefficient(t[1], e[1]) - coefficient(loss[1], e[1])
    assert interval({"correlation_change": one}, table).estimate == pytest.approx(change)
    same = interval({"correlation_change": XY | {"minus": ["trace", "error"]}}, table)
    assert same[:3] == (0, 0, 0)


@pytest.mark.parametrize("name", COEFFICIENTS)
def test_a_slope_is_that_of_the_coefficients_within_the_levels(name, arrays, table):
    coefficient = COEFFICIENTS[name]
    x, y = arrays["trace"], arrays["error"]

    def statistic(s):
        each = [coefficient(x[:, j][:, s], y[:, j][:, s]) for j in range(3)]
        return stats.linregress(N, each).slope

    found = interval({"correlation_slope": XY | {"over": "n", "coefficient": name}}, table)
    around(statistic, found)
    assert found.estimate < -0.02  # it was made to fall
    default = interval({"correlation_slope": XY | {"over": "n"}}, table)
    kendall = interval({"correlation_slope": XY | {"over": "n", "coefficient": "kendall"}}, table)
    assert default == kendall


def test_arms_may_stand_for_the_levels(arrays, table):
    x, y = arrays["trace"], arrays["error"]
    tau = COEFFICIENTS["kendall"]
    found = interval({"correlation_slope": XY | {"over": {"a": 1.0, "b": 3.0}}}, table)
    assert found.estimate == pytest.approx((tau(x[1], y[1]) - tau(x[0], y[0])) / 2)
    third = table_of(
        {
            **{
                ("ab"[k], n, q): list(v[k, j])
                for q, v in arrays.items()
                for k in (0, 1)
                for j, n in enumerate(N)
            },
            **{("c", 10, q): [9.0, 1.0, 2.0, 3.0, 5.0, 4.0] for q in arrays},
        }
    )
    assert interval({"correlation_slope": XY | {"over": {"a": 1, "b": 3}}}, third) == found
    still = verdict({"correlation_slope": XY | {"over": "n", "at": {"n": 10}}}, {"above": 0}, table)
    assert still.verdict == "void" and "all at one level" in still.reason


@pytest.mark.parametrize(
    ("test", "said"),
    [
        ({"correlation_change": XY}, "minus: must be a list of two"),
        ({"correlation_change": XY | {"minus": "loss"}}, "minus: must be a list of two"),
        ({"correlation_change": XY | {"minus": ["loss", "eror"]}}, "did you mean 'error'"),
        ({"correlation_change": {"x": ["trace"], "y": "error", "minus": ["loss", "los"]}}, "did you mean"),
        (
            {"correlation_change": {"x": ["trace", "loss"], "y": "error", "minus": ["loss", "error"]}},
            "length",
        ),
        ({"correlation_change": {"x": [], "y": [], "minus": ["loss", "error"]}}, "length"),
        ({"correlation_slope": XY}, "over is missing"),
        ({"correlation_slope": XY | {"over": "m"}}, "unknown axis 'm'"),
        ({"correlation_slope": XY | {"over": "kind"}}, "'kind' has .*, which is not a number"),
        ({"correlation_slope": XY | {"over": {"a": "x", "b": 1}}}, "over.a must be a finite number"),
        ({"correlation_slope": XY | {"over": {"a": 1, "e": 1}}}, "unknown arm 'e'"),
        ({"correlation_slope": XY | {"over": {"a": 1, "b": 2}, "arm": "a"}}, "leave out arm"),
        ({"correlation_slope": XY | {"over": "n", "coefficient": "spearman"}}, "one of kendall, pearson"),
        ({"rank_correlation": XY | {"minus": ["loss", "error"]}}, "neither measured nor an axis"),
    ],
)
def test_refusals(test, said):
    with pytest.raises(Refused, match=said):
        read_claims({"c": {"says": "x", "test": test, "predicts": {"above": 0}}}, SCOPE)


def ties(rng, n, rho):
    """Three variables (4, n) with seed effects; the correlation of the first two is ρ, of x and z 0.3."""
    matrix = np.array([[1, rho, 0.3], [rho, 1, 0.2], [0.3, 0.2, 1]])
    draw = 0.6 * rng.normal(size=(3, 1, n)) + 0.8 * rng.normal(size=(3, 4, n))
    return np.einsum("ij,jpn->ipn", np.linalg.cholesky(matrix), draw)


@pytest.mark.parametrize("n", [5, 8])
@pytest.mark.parametrize("name", COEFFICIENTS)
def test_they_cover(name, n):
    """Of normal variables τ = (2/π) asin ρ; r is ρ."""
    rng, held = np.random.default_rng(n), {"change": 0, "slope": 0}
    repeats = 100 if name == "pearson" else 40
    truth = (lambda rho: rho) if name == "pearson" else (lambda rho: 2 / np.pi * np.arcsin(rho))
    rhos = (0.7, 0.4, 0.1)
    aims = {"change": truth(0.7) - truth(0.2), "slope": (truth(0.1) - truth(0.7)) / 2}
    arms = "abcd"
    for _ in range(repeats):
        found = {level: ties(rng, n, rho) for level, rho in zip(N, rhos, strict=True)}
        values = {
            (arm, level, q): list(found[level][k, j])
            for level in N
            for j, arm in enumerate(arms)
            for k, q in enumerate(("trace", "error", "loss"))
        }
        table = table_of(values)
        change = {
            "x": "trace",
            "y": "error",
            "minus": ["error", "loss"],
            "at": {"n": 10},
            "coefficient": name,
        }
        slope = {"correlation_slope": XY | {"over": "n", "coefficient": name}}
        for key, test, scale in (("change", {"correlation_change": change}, 1), ("slope", slope, 10)):
            one = interval(test, table)
            held[key] += scale * one.low <= aims[key] <= scale * one.high
    noise = 2.5 * math.sqrt(0.95 * 0.05 / repeats)
    for key, count in held.items():
        assert 0.94 - noise <= count / repeats <= 1, (key, count)
