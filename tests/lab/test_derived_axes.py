"""Quantities derived from the axes of a grid and from numbers, and the factor between two."""

from __future__ import annotations

import math

import pytest

from flattrain.lab.derived import read_derived, with_derived
from flattrain.lab.results import Row
from flattrain.ranges import Refused

POINT = (("n", "50"), ("kind", "p"))
AXES = {"n": {50, 100}, "kind": {"p", "q"}}


def made(table, values, point=POINT):
    rows = [Row("a", point, 0, 7, q, *v) for q, v in values.items()]
    spec = read_derived(table, tuple(values), AXES)
    return {r.quantity: (r.value, r.standard_error) for r in with_derived(rows, spec)}, spec


def test_an_axis_and_a_number_are_parts():
    table = {
        "inverse": {"ratio": [1, "n"]},
        "each": {"ratio": ["rank", "n"]},
        "more": {"difference": ["each", 2]},
    }
    found, spec = made(table, {"rank": (20.0, 5.0)})
    assert found["inverse"] == (0.02, 0.0) and found["each"] == (0.4, 0.1) and found["more"][0] == -1.6
    assert [d.definition.split(",")[0] for d in spec] == ["1 / n", "rank / n", "each − 2"]


def test_every_step_of_every_run_has_what_only_axes_make():
    rows = [Row(arm, POINT, s, t, "loss", 1.0, 0.0) for arm in "ab" for s in (0, 1) for t in (0, 5)]
    spec = read_derived({"inverse": {"ratio": [1, "n"]}}, ("loss",), AXES)
    found = [r for r in with_derived(rows, spec) if r.quantity == "inverse"]
    assert {(r.arm, r.seed, r.step) for r in found} == {(r.arm, r.seed, r.step) for r in rows}
    assert {r.value for r in found} == {0.02} and len(found) == 8


def test_an_arm_without_the_axis_has_no_such_quantity():
    found, _ = made({"inverse": {"ratio": [1, "n"]}}, {"rank": (20.0, 0.0)}, point=(("kind", "p"),))
    assert set(found) == {"rank"}


@pytest.mark.parametrize(("a", "b", "factor"), [(3.0, 1.5, 2.0), (1.5, 3.0, 2.0), (-1.0, -4.0, 4.0)])
def test_a_factor_is_the_larger_over_the_smaller(a, b, factor):
    found, _ = made({"off": {"factor": ["a", "b"]}}, {"a": (a, 0.3), "b": (b, 0.0)})
    value, error = found["off"]
    assert value == pytest.approx(factor)
    assert error == pytest.approx(factor * 0.3 / abs(a))  # to first order the relative error stays


@pytest.mark.parametrize(("a", "b"), [(1.0, -1.0), (0.0, 1.0), (1.0, 0.0)])
def test_there_is_no_factor_between_different_signs(a, b):
    found, _ = made({"off": {"factor": ["a", "b"]}}, {"a": (a, 0.0), "b": (b, 0.0)})
    assert math.isnan(found["off"][0])


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"n": {"ratio": ["a", "a"]}}, "derived.n: there is an axis of that name"),
        ({"x": {"ratio": ["a", "kind"]}}, "'kind' is not measured"),
        ({"x": {"ratio": [1, 2]}}, "both are numbers"),
        ({"x": {"ratio": [True, "a"]}}, "True is not measured"),
        ({"x": {"product": ["a", "a"]}}, "give one of difference, ratio, factor"),
    ],
)
def test_what_is_refused(table, said):
    with pytest.raises(Refused, match=said):
        read_derived(table, ("a",), AXES)
