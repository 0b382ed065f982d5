"""Quantities with names of their own, derived ones, and claims about how two move together along a run."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from claimed import claim, verdict
from scipy.stats import rankdata

from flattrain.lab import results
from flattrain.lab.derived import read_derived, with_derived
from flattrain.lab.matching import matched, when_text
from flattrain.lab.results import Row, Table
from flattrain.lab.statistics.spearman import spearman
from flattrain.ranges import Refused
from recipes import ONE_ARM, call, write

NAMED = ONE_ARM.replace(
    "along: [train_loss]",
    "along: [train_loss, test_loss, {start: {weight_norm: {layer: hidden}}}, {test_again: {train_loss: {}}}]",
).replace("milestones: 1", "milestones: 4, spacing: linear")
DERIVED = """
derived:
  gap: {difference: [test_loss, train_loss]}
  share: {ratio: [gap, train_loss]}
claims:
  moves:
    says: The gap moves with itself.
    test: {comovement: {x: gap, y: share, arm: plain}}
    predicts: {above: -1}
  largest:
    says: The gap was never above its largest value.
    test: {median: {quantity: gap, arm: plain, when: {last: 1, take: largest}}}
    predicts: {at_most: 100}
"""


def test_names_and_derived_quantities_are_in_the_table(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, NAMED + DERIVED)
    code, _, err = call(capsys, "recipe=tiny", "out=run")
    assert code == 0, err
    table = results.read(tmp_path / "run" / "results.csv")
    found = {(r.seed, r.step, r.quantity): r.value for r in table.rows}
    steps = {(s, t) for s, t, _ in found}
    assert len(steps) == 2 * 5
    for at in steps:
        gap = found[*at, "test_loss"] - found[*at, "train_loss"]
        assert found[*at, "gap"] == gap and found[*at, "share"] == gap / found[*at, "train_loss"]
        assert found[*at, "test_again"] == found[*at, "test_loss"] and found[*at, "start"] > 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert "test_loss − train_loss" in record["definitions"]["gap"]
    assert "test examples" in record["definitions"]["test_again"]
    verdicts = json.loads((tmp_path / "run" / "verdicts.json").read_text())["claims"]
    largest = (
        max(found[0, t, "gap"] for s, t in steps if s == 0),
        max(found[1, t, "gap"] for s, t in steps if s),
    )
    assert verdicts["largest"]["estimate"] == pytest.approx(np.median(largest))


def test_another_derivation_is_another_trial_and_runs_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, NAMED + DERIVED)
    assert call(capsys, "recipe=tiny", "out=run")[0] == 0
    cells = {p: p.stat().st_mtime_ns for p in (tmp_path / "run" / "cells").iterdir()}
    write(tmp_path, NAMED + DERIVED.replace("[test_loss, train_loss]", "[train_loss, test_loss]"))
    assert call(capsys, "recipe=tiny", "out=run")[0] == 0
    assert cells == {p: p.stat().st_mtime_ns for p in (tmp_path / "run" / "cells").iterdir()}
    assert len(json.loads((tmp_path / "run" / "run.json").read_text())["registrations"]) == 2


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("{start: {weight", "{train_loss: {weight", "unknown key 'weight_norm'"),
        ("{start: {weight", "{Start: {weight", "a name has lower-case letters"),
        ("{start: {weight_norm", "{start: {weight_nrom", "unknown 'start'"),
        ("{start: {weight_norm: {layer: hidden}}}", "train_loss", "measured twice; give one of them a name"),
        ("[test_loss, train_loss]", "[test_loss, train_los]", "did you mean 'train_loss'"),
        ("gap: {difference", "gap: {diference", "give one of difference, ratio"),
        ("gap: {difference", "test_loss: {difference", "there is a measured quantity of that name"),
        ("{last: 1, take: largest}", "{last: 0, take: largest}", "must be above 0"),
        ("{last: 1, take: largest}", "{last: 1, take: max}", "must be one of median, smallest, largest"),
        ("{last: 1, take: largest}", "{last: 1, tkae: largest}", "did you mean 'take'"),
        ("x: gap, y", "x: gpa, y", "did you mean 'gap'"),
    ],
)
def test_mistakes_are_answered_in_one_line(old, new, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, (NAMED + DERIVED).replace(old, new))
    code, _, err = call(capsys, "recipe=tiny", "out=run")
    assert code == 2 and said in err and err.count("\n") == 1, err
    assert not (tmp_path / "run").exists()


def test_errors_of_derived_quantities_and_what_has_no_value():
    def row(quantity, value, error, step=3):
        return Row("a", (), 0, step, quantity, value, error)

    rows = [row("p", 6.0, 0.3), row("q", 2.0, 0.4), row("p", 1.0, 0.0, 5), row("z", 0.0, 0.0)]
    specs = {"less": {"difference": ["p", "q"]}, "over": {"ratio": ["p", "q"]}, "none": {"ratio": ["p", "z"]}}
    found = {r.quantity: r for r in with_derived(rows, read_derived(specs, ("p", "q", "z")))[4:]}
    assert len(found) == 3  # at step 5 there is no q
    assert (found["less"].value, found["less"].standard_error) == (4.0, 0.5)
    assert found["over"].value == 3.0
    assert found["over"].standard_error == pytest.approx(3 * math.hypot(0.3 / 6, 0.4 / 2))
    assert math.isnan(found["none"].value)


def test_spearman_is_pearson_of_ranks():
    rng = np.random.default_rng(0)
    for _ in range(20):
        x, y = rng.integers(0, 6, 12).astype(float), rng.normal(size=12)
        assert spearman(x, y) == pytest.approx(np.corrcoef(rankdata(x), rankdata(y))[0, 1])
    assert spearman(np.ones(5), y[:5]) == 0.0


def test_comovement_looks_along_each_run():
    up, down = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [6.0, 5.0, 4.0, 3.0, 2.0, 1.0]
    turn = [1.0, 2.0, 3.0, 3.0, 2.0, 1.0]
    table = {
        ("a", 10, "loss"): [up] * 5,
        ("a", 10, "trace"): [up, up, up, up, turn],
        ("a", 10, "error"): [down] * 5,
    }
    test = {"comovement": {"x": "loss", "y": "trace", "arm": "a", "at": {"n": 10}}}
    found = verdict(test, {"above": 0.7}, table)
    assert found.interval.estimate == 1.0 and found.interval.n == 5
    # Among runs it would be the other way round: at the last step nothing varies.
    falling = {"comovement": test["comovement"] | {"y": "error"}}
    assert verdict(falling, {"below": -0.7}, table).interval.estimate == -1.0
    early = {"comovement": test["comovement"] | {"among": {"quantity": "loss", "at_most": 5}}}
    table["a", 10, "trace"] = [[1, 2, 3, 4, 5, -9]] * 5
    assert verdict(early, {"above": 0.7}, table).interval.estimate == pytest.approx(1)
    fewer = {"comovement": test["comovement"] | {"among": {"quantity": "loss", "at_most": 4}}}
    assert verdict(fewer, {"above": 0.7}, table).verdict == "void"
    with pytest.raises(Refused, match="'n' is not measured"):
        claim({"comovement": {"x": "n", "y": "trace", "arm": "a"}}, {"above": 0})


def test_the_last_share_of_the_steps():
    rows = [
        Row("a", (), 0, step, "q", value, 0.0) for step, value in ((0, 9), (10, 1), (20, 5), (30, 2), (40, 4))
    ]
    run = ("a", ())
    for when, wanted in (
        ({"last": 0.5}, 4),
        ({"last": 0.5, "take": "smallest"}, 2),
        ({"last": 1, "take": "largest"}, 9),
        ({"last": 0.25}, 3),
    ):
        assert matched(Table(rows), "q", run, when) == {0: wanted}
    assert when_text({"last": 0.25}) == "median over the last 25 % of the steps"
    rows[3] = Row("a", (), 0, 30, "q", math.nan, 0.0)
    assert math.isnan(matched(Table(rows), "q", run, {"last": 0.5})[0])
