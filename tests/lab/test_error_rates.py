"""How often verdicts err: 500 simulated recipes with nothing in them to be found, and Holm's correction."""

from __future__ import annotations

import numpy as np
import pytest
from claimed import SCOPE, table_of, verdict
from scipy import stats

from flattrain.lab.claims import read_claims, read_correction
from flattrain.lab.results import Table
from flattrain.lab.verdicts import judge_all
from flattrain.ranges import Refused

FIRM = ("supported", "refuted")
N = (10, 20, 30)
XY = {"x": "trace", "y": "error"}
AT = {"at": {"n": 10}}
NOTHING = {  # each with the value that its statistic has when nothing is there
    "difference": ({"difference": {"quantity": "error", "arm": "a", "versus": "b"} | AT}, 0),
    "median": ({"median": {"quantity": "error", "arm": "a"} | AT}, 0),
    "lower": ({"lower": {"quantity": "error", "arm": "a", "versus": "b"} | AT}, 0.5),
    "slope": ({"slope": {"x": "n", "y": "error", "arm": "b"}}, 0),
    "effect": (
        {
            "effect": {
                "quantity": "trace",
                "of": "interaction",
                "rows": {"arm": ["a", "b"]},
                "columns": {"n": [10, 30]},
            }
        },
        0,
    ),
    "tau": ({"rank_correlation": XY | {"arm": "a"}}, 0),
    "change": ({"correlation_change": XY | {"minus": ["loss", "error"]}}, 0),
    "tau-slope": ({"correlation_slope": XY | {"over": "n"}}, 0),
    "psi": ({"granulated_kendall": {"x": "trace", "y": "loss", "axes": ["n"]}}, 0),
    "sign": ({"sign_error": XY | {"axes": ["n"], "environments": "mean"}}, 0.5),
}


def recipe(seeds_per_recipe, rng) -> Table:
    """Three quantities that have nothing to do with one another, the arms or the grid; seeds differ."""
    of_seed = 0.5 * rng.normal(size=(3, 1, 1, seeds_per_recipe))
    draw = of_seed + rng.standard_t(5, size=(3, 2, 3, seeds_per_recipe))
    return table_of(
        {
            (arm, n, q): draw[k, i, j].tolist()
            for k, q in enumerate(("error", "trace", "loss"))
            for i, arm in enumerate("ab")
            for j, n in enumerate(N)
        }
    )


@pytest.fixture(scope="module")
def counts():
    """Decided verdicts of 500 recipes of 5 or 8 seeds, by claim; and recipes with any under Holm."""
    claims = read_claims(
        {
            name: {"says": name, "test": test, "predicts": {"below": null}, "refuted_if": {"above": null}}
            for name, (test, null) in NOTHING.items()
        },
        SCOPE,
    )
    rng = np.random.default_rng(0)
    found = {verdict: dict.fromkeys(NOTHING, 0) for verdict in FIRM}
    with_any = 0
    for k in range(500):
        judged = judge_all(claims, table := recipe((5, 8)[k % 2], rng))
        for v in judged:
            if v.verdict in FIRM:
                found[v.verdict][v.claim.id] += 1
        if any(v.verdict in FIRM for v in judged):
            with_any += any(v.verdict in FIRM for v in judge_all(claims, table, "holm"))
    return found, with_any


def test_verdicts_err_at_most_in_one_of_twenty_recipes(counts):
    found, _ = counts
    either = {name: found["supported"][name] + found["refuted"][name] for name in NOTHING}
    assert sum(either.values()) <= 0.05 * 500 * len(NOTHING), either
    noise = stats.binom.ppf(0.999, 500, 0.05)
    assert all(count <= noise for count in either.values()), either
    for verdict_ in FIRM:  # each way half of it
        assert all(c <= stats.binom.ppf(0.999, 500, 0.025) for c in found[verdict_].values()), found
    assert either["slope"] > 0 and either["median"] > 0


def test_holms_correction_holds_the_error_of_all_claims_together(counts):
    found, with_any = counts
    assert sum(map(sum, (v.values() for v in found.values()))) > 50  # uncorrected, one recipe in six or more
    assert with_any <= 0.05 * 500


def test_verdicts_are_sure_of_what_is_there():
    rng = np.random.default_rng(0)
    right = 0
    for _ in range(50):
        seed = rng.normal(size=8)
        values = {("a", 10, "error"): seed + 0.3 * rng.normal(size=8) - 1, ("b", 10, "error"): seed}
        test = NOTHING["difference"][0]
        right += verdict(test, {"below": 0}, values, refuted_if={"above": 0}).verdict == "supported"
    assert right >= 48


def slopes_of(values, arm, quantity):
    y = np.array([values[arm, n, quantity] for n in N])
    return [stats.linregress(N, y[:, s]).slope for s in range(y.shape[1])]


def holm_by_p_values(p_values, alpha):
    """The hypotheses that Holm's step-down procedure rejects."""
    order, rejected = np.argsort(p_values), set()
    for k, i in enumerate(order):
        if p_values[i] > alpha / (len(p_values) - k):
            break
        rejected.add(int(i))
    return rejected


def test_holm_decides_the_claims_that_holms_p_values_reject():
    rng = np.random.default_rng(1)
    targets = [(arm, q) for arm in "ab" for q in ("error", "trace", "loss")]
    claims = read_claims(
        {
            f"{arm}-{q}": {
                "says": "rises",
                "test": {"slope": {"x": "n", "y": q, "arm": arm}},
                "predicts": {"above": 0},
                "refuted_if": {"below": 0},
            }
            for arm, q in targets
        },
        SCOPE,
    )
    sizes, changed = set(), 0
    for _ in range(60):
        values = {
            (arm, n, q): list(rng.normal(size=7) + strength * n / 10)
            for arm, q in targets
            for strength in [rng.choice([0, 0.5, 0.8, 2.0])]
            for n in N
        }
        p_values = np.array([stats.ttest_1samp(slopes_of(values, *t), 0).pvalue for t in targets])
        wanted = holm_by_p_values(p_values, 0.05)
        judged = judge_all(claims, table_of(values), "holm")
        assert {k for k, v in enumerate(judged) if v.verdict in FIRM} == wanted
        sizes.add(len(wanted))
        for v, p in zip(judged, p_values, strict=True):
            assert (v.holm.alone in FIRM) == (p <= 0.05) and v.as_json()["holm"]["claims"] == 6
            if v.holm.alone in FIRM and v.verdict == "undecided":
                changed += 1
                assert "if it stood alone; among 6 claims Holm's correction asks for" in v.reason
                assert v.interval.low > 0 or v.interval.high < 0  # the plain interval is kept
                assert v.holm.interval.low <= 0 <= v.holm.interval.high and v.seeds_needed >= 8
    assert len(sizes) >= 4 and changed > 5


def test_families_are_corrected_apart_and_void_claims_count():
    test = NOTHING["median"][0]
    values = {("a", 10, "error"): [0.1, 0.2, 0.15, 0.3, 0.12, 0.18, 0.22, 0.14]}  # all above 0: 99.2 %
    spec = {"says": "x", "test": test, "predicts": {"above": 0}, "refuted_if": {"below": 0}}
    gone = spec | {"test": {"median": test["median"] | {"arm": "b"}}}

    def verdicts(**table):
        return [v.verdict for v in judge_all(read_claims(table, SCOPE), table_of(values), "holm")]

    assert verdicts(one=spec) == ["supported"]
    wide = spec | {"level": 0.99}
    values["a", 10, "error"][0] = 0.001
    table = {"one": wide, **{f"gone{k}": gone for k in range(30)}}
    assert verdicts(**table)[0] == "undecided"
    apart = table | {"one": wide | {"family": "first"}}
    assert verdicts(**apart)[0] == "supported"
    with pytest.raises(Refused, match="did you mean 'holm'"):
        read_correction("hölm")


def test_undecided_verdicts_say_how_many_seeds_would_decide():
    test = NOTHING["slope"][0] | {}
    rng = np.random.default_rng(3)

    def judged(n, scale):
        values = {("b", k, "error"): list(k / 10 + scale * rng.normal(size=n)) for k in N}
        return verdict(test, {"above": 0}, values, refuted_if={"below": 0})

    few = judged(6, 3.0)
    assert few.verdict == "undecided" and few.seeds_needed > 6
    assert f"about {few.seeds_needed} seeds would decide it" in few.reason
    assert few.as_json()["seeds_needed"] == few.seeds_needed
    decided = [judged(4 * few.seeds_needed, 3.0).verdict for _ in range(5)]
    assert decided.count("supported") >= 4
    between = verdict(
        test, {"above": 5}, {("b", n, "error"): [n / 10] * 4 for n in N}, refuted_if={"below": 0}
    )
    assert between.seeds_needed is None and "no number of seeds decides" in between.reason
    edge = verdict(
        test, {"at_least": 0}, {("b", n, "error"): [0, 1, 0, -1] for n in N}, refuted_if={"at_most": 0}
    )
    assert edge.verdict == "undecided" and "lies on the bound" in edge.reason
    one = verdict(test, {"above": 0}, {("b", n, "error"): [n] for n in N})
    assert one.verdict == "undecided" and "one seed gives no interval" in one.reason
    far = verdict(
        test,
        {"at_least": 0},
        {("b", n, "error"): [n * k for k in (-1, 1, 1.0001, -1)] for n in N},
        refuted_if={"below": 0},
    )
    assert "more than 10,000 seeds" in far.reason and far.seeds_needed > 10_000
