"""Matching on made-up tables whose curves are known in closed form."""

from __future__ import annotations

import math

import pytest

from flattrain.lab.claims import read_claims
from flattrain.lab.matching import check_when, lowest_common, matched, when_text
from flattrain.lab.results import Row, Table
from flattrain.lab.scope import Scope
from flattrain.lab.verdicts import judge_all
from flattrain.ranges import Refused

SEEDS = {0: 1.0, 1: 1.5}  # seed -> how fast it learns


def table(curves, steps=range(0, 60, 10)):
    """curves: arm -> quantity -> (step, speed) -> value."""
    rows = []
    for arm, quantities in curves.items():
        for seed, speed in SEEDS.items():
            for step in steps:
                rows += [Row(arm, (), seed, step, q, f(step, speed), 0.0) for q, f in quantities.items()]
    return Table(rows)


def loss(rate):
    return lambda step, speed: 3 * math.exp(-rate * speed * step)


def along(rate):
    """Straight in the logarithm of the loss, so that interpolation is exact: 7 − 2 log(loss / 3)."""
    return lambda step, speed: 7 + 2 * rate * speed * step


CURVES = {
    "fast": {"train_loss": loss(0.1), "trace": along(0.1), "gradient_evaluations": lambda t, s: 2.0 * t},
    "slow": {"train_loss": loss(0.03), "trace": along(0.03), "gradient_evaluations": lambda t, s: 1.0 * t},
}
FAST, SLOW = ("fast", ()), ("slow", ())


def test_at_a_loss_two_arms_on_one_curve_agree_whatever_their_speed():
    whole = table(CURVES)
    when = {"quantity": "train_loss", "equals": 0.9}
    truth = 7 - 2 * math.log(0.9 / 3)
    for run in (FAST, SLOW):
        assert matched(whole, "trace", run, when) == pytest.approx(dict.fromkeys(SEEDS, truth), rel=1e-13)
    # The first milestones below it are not at equal loss: the faster arm has gone farther.
    below = {"quantity": "train_loss", "at_most": 0.9}
    first = {run: matched(whole, "trace", run, below)[1] for run in (FAST, SLOW)}
    assert first == {FAST: 7 + 2 * 0.15 * 10, SLOW: 7 + 2 * 0.045 * 30}


def test_the_lowest_common_level_is_the_higher_of_the_two_ends():
    whole = table(CURVES)
    ends = {s: 3 * math.exp(-0.03 * v * 50) for s, v in SEEDS.items()}
    found = lowest_common([whole.series("train_loss", *run) for run in (FAST, SLOW)])
    assert found == pytest.approx(ends, rel=1e-13)
    when = {"quantity": "train_loss", "equals": "lowest_common"}
    for run, rival in ((FAST, SLOW), (SLOW, FAST)):
        values = matched(whole, "trace", run, when, [rival])
        assert values == pytest.approx({s: 7 + 2 * 0.03 * v * 50 for s, v in SEEDS.items()}, rel=1e-13)


def test_equal_gradient_evaluations_are_linear_from_zero_on():
    whole = table(CURVES)
    when = {"gradient_evaluations": 34}
    for seed, speed in SEEDS.items():
        assert matched(whole, "trace", FAST, when)[seed] == pytest.approx(7 + 2 * 0.1 * speed * 17)
        assert matched(whole, "trace", SLOW, when)[seed] == pytest.approx(7 + 2 * 0.03 * speed * 34)
    assert all(map(math.isnan, matched(whole, "trace", SLOW, {"gradient_evaluations": 51}).values()))
    # At a milestone it is the milestone's.
    assert matched(whole, "trace", SLOW, {"gradient_evaluations": 50})[0] == 7 + 2 * 0.03 * 50


def series(gate, values):
    rows = [Row("a", (), 0, k, "g", g, 0.0) for k, g in enumerate(gate)]
    return Table(rows + [Row("a", (), 0, k, "q", q, 0.0) for k, q in enumerate(values)])


@pytest.mark.parametrize(
    ("gate", "values", "level", "expected"),
    [
        ([4, 1, 4], [0, 10, 90], 2, 5.0),  # the first passage, half-way in the logarithm
        ([1, 4, 1], [0, 10, 90], 2, 50.0),  # from above, not where it rises
        ([1, 4], [0, 10], 2, 5.0),  # it only rises
        ([3, -1], [0, 8], 1, 4.0),  # not in the logarithm below 0
        ([2, 5], [7, 8], 2, 7.0),
        ([5, 2, 2], [7, 8, 9], 2, 8.0),
        ([5, 4, 3], [1, 2, 3], 2, math.nan),
        ([5, math.nan, 1], [1, 2, 3], 2, math.nan),
        ([5, math.inf, 3, 1], [1, 2, 3, 4], 4, math.nan),
        ([3, math.inf, 4, 1], [1, 2, 3, 4], 4, 3.0),
        ([4, 1], [math.nan, 3], 2, math.nan),
        ([4, 1], [3], 2, math.nan),  # measured at the start alone
    ],
)
def test_passages(gate, values, level, expected):
    found = matched(series(gate, values), "q", ("a", ()), {"quantity": "g", "equals": level})[0]
    assert found == pytest.approx(expected, nan_ok=True, rel=1e-14)


def test_matching_does_not_depend_on_the_unit_of_the_gate():
    plain = matched(series([8, 1], [0, 3]), "q", ("a", ()), {"quantity": "g", "equals": 2})
    divided = {"quantity": "g", "equals": 0.2, "divided_by": 10}
    assert matched(series([8, 1], [0, 3]), "q", ("a", ()), divided) == pytest.approx(plain) == {0: 2.0}


def test_a_trace_that_rises_first_is_matched_where_it_falls():
    """At the start both arms are the same net: the smallest trace they share, and nothing to compare."""
    curves = {"a": ([1, 50, 20, 8], [0.9, 0.5, 0.2, 0.1]), "b": ([1, 40, 10, 5], [0.9, 0.6, 0.4, 0.3])}
    rows = [
        Row(arm, (), 0, k, quantity, value, 0.0)
        for arm, both in curves.items()
        for quantity, values in zip(("trace", "error"), both, strict=True)
        for k, value in enumerate(values)
    ]
    found, runs = Table(rows), [("a", ()), ("b", ())]
    assert lowest_common([found.series("trace", *run) for run in runs]) == {0: 8}
    when = {"quantity": "trace", "equals": "lowest_common"}
    a, b = (matched(found, "error", run, when, runs)[0] for run in runs)
    w = math.log(8 / 10) / math.log(5 / 10)
    assert a == 0.1 and b == pytest.approx(0.4 + w * (0.3 - 0.4))


def test_a_seed_that_diverged_has_no_common_level():
    rows = [Row(arm, (), 0, k, "g", v, 0.0) for arm, v in (("a", 1.0), ("b", math.nan)) for k in range(2)]
    broken = Table(rows)
    assert math.isnan(lowest_common([broken.series("g", arm, ()) for arm in "ab"])[0])


BAD = [
    ([1], "must be a table"),
    ({"quantity": "g"}, "give at_most, for the first milestone"),
    ({"quantity": "g", "equals": 1, "at_most": 1}, "give at_most, for the first milestone"),
    ({"quantity": "g", "at_most": 1, "above": 0}, "give at_most, for the first milestone"),
    ({"quantity": "g", "equal": 1}, "did you mean 'equals'"),
    ({"quantity": "g", "equals": "lowest"}, "or lowest_common"),
    ({"quantity": "g", "equals": math.nan}, "must be a finite number"),
    ({"quantity": "g", "equals": "lowest_common"}, "needs a test of two arms"),
    ({"gradient_evaluations": 0}, "must be a number > 0"),
    ({"gradient_evaluations": 5, "quantity": "g"}, "must stand alone"),
    ({"quantity": "g", "equals": 1, "divided_by": 0}, "divided_by must be a number > 0"),
]


@pytest.mark.parametrize(("when", "said"), BAD, ids=range(len(BAD)))
def test_refusals(when, said):
    with pytest.raises(Refused, match=said) as refused:
        check_when(when, "claims.x.test.median.when", rivals=False)
    assert str(refused.value).startswith("claims.x.test.median.when")


def test_in_words():
    assert check_when({"gradient_evaluations": 5}, "", rivals=False) == "gradient_evaluations"
    assert check_when({"quantity": "g", "equals": "lowest_common"}, "", rivals=True) == "g"
    assert when_text({"quantity": "g", "at_most": 0.1}) == "g ≤ 0.1"
    assert when_text({"quantity": "g", "equals": 2, "divided_by": 4}) == "g / 4 = 2"
    assert when_text({"quantity": "g", "equals": "lowest_common"}) == "g = the lowest common level"
    assert when_text({"gradient_evaluations": 5000}) == "gradient_evaluations = 5000"


def test_a_claim_is_judged_where_it_says():
    """Both arms lie on one curve: apart at the first milestones, equal at equal loss."""
    scope = Scope(("fast", "slow"), {}, ("train_loss", "trace", "gradient_evaluations"))

    def estimate(when):
        test = {"difference": {"quantity": "trace", "arm": "fast", "versus": "slow", "when": when}}
        claim = {"says": "s", "test": test, "predicts": {"between": [-1e-9, 1e-9]}}
        (found,) = judge_all(read_claims({"c": claim}, scope), table(CURVES))
        return found

    for level in (0.9, 2.0, "lowest_common"):
        found = estimate({"quantity": "train_loss", "equals": level})
        assert found.verdict != "void" and abs(found.interval.estimate) < 1e-12
    assert abs(estimate({"quantity": "train_loss", "at_most": 0.9}).interval.estimate) > 0.1
    budget = estimate({"gradient_evaluations": 40}).interval.estimate
    middle = sum(SEEDS.values()) / 2
    assert budget == pytest.approx(2 * middle * (0.1 * 20 - 0.03 * 40))
    never = estimate({"gradient_evaluations": 70})
    assert never.verdict == "void" and "never reach gradient_evaluations = 70" in never.reason
    with pytest.raises(Refused, match="'g' is not measured"):
        estimate({"quantity": "g", "equals": 1})
