"""The exploratory figure of many correlations: what it is asked for, and that it draws what tests compute."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
from claimed import SCOPE, table_of, verdict

from flattrain.lab.correlations import NOTE, paint_correlations
from flattrain.lab.figures_spec import read_figures
from flattrain.lab.painters import Arm, Canvas
from flattrain.ranges import Refused

SETTINGS = {"x": ["loss", "trace"], "y": "error", "groups": {"one": ["a"], "both": ["a", "b"]}}
TESTS = [
    "rank_correlation",
    {"stratified_rank_correlation": {"by": ["n"]}},
    {"granulated_kendall": {"axes": ["n"]}},
    {"partial_rank_correlation": {"given": ["n"]}},
]


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(1)
    return table_of(
        {
            (arm, n, q): rng.normal(size=4).tolist()
            for arm in "ab"
            for n in (10, 20, 30)
            for q in SCOPE.quantities
        }
    )


def painted(settings, table):
    figure, axes = plt.subplots()
    arms = [Arm(name, "#000000", "o") for name in "ab"]
    said = paint_correlations(Canvas(axes, settings, table, arms, True))
    marks = [(line.get_xdata(), line.get_ydata()) for line in axes.lines]
    plt.close(figure)
    return said, marks


@pytest.mark.parametrize("test", TESTS, ids=str)
def test_it_draws_the_estimates_and_intervals_of_the_test(test, table):
    (spec,) = read_figures([{"correlations": SETTINGS | {"test": test}}], SCOPE)
    said, marks = painted(spec.settings, table)
    kind, more = (test, {}) if isinstance(test, str) else next(iter(test.items()))
    for group, arms in SETTINGS["groups"].items():
        for x in SETTINGS["x"]:
            of = {"x": x, "y": "error", "arms": arms} | more
            found = verdict({kind: of}, {"above": -9}, table).interval
            assert any(np.allclose(xs, [found.low, found.high]) for xs, _ in marks if len(xs) == 2)
            assert any(np.allclose(xs, [found.estimate]) for xs, _ in marks if len(xs) == 1)
            (line,) = [s for s in said if s.startswith(group)]
            assert f"{x} {found.estimate:.2f}" in line


def test_what_has_no_value_is_counted_and_the_note_says_what_it_is_not(table):
    said, _ = painted(SETTINGS | {"y": "trace", "x": ["loss"], "groups": {"none": ["c"], "a": ["a"]}}, table)
    assert said[-1] == "1 have no value." and said[0] == "none: ."
    assert "no verdicts" in NOTE


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"x": "loss"}, "x: must be a list"),
        ({"x": []}, "x: must be a list"),
        ({"x": ["los"]}, "did you mean 'loss'"),
        ({"y": "eror"}, "did you mean 'error'"),
        ({"test": "median"}, "test: give one of rank_correlation"),
        ({"test": {"rank_correlation": {"x": "loss"}}}, "x stands outside of the test"),
        ({"test": {"rank_correlation": {"arm": "a"}}}, "arm stands outside of the test"),
        ({"test": {"granulated_kendall": {"axes": ["m"]}}}, "unknown axis 'm'"),
        ({"test": {"partial_rank_correlation": {}}}, "given is missing"),
        ({"groups": ["a"]}, "groups: must be a table"),
        ({"groups": {"one": ["e"]}}, "unknown arm 'e'"),
        ({"log": "x"}, "unknown key 'log'"),
    ],
)
def test_what_is_refused(change, said):
    with pytest.raises(Refused, match=said):
        read_figures([{"correlations": SETTINGS | change}], SCOPE)
