"""What an arm may say beside its rule: a step size, an average of the weights, and not to compile."""

from __future__ import annotations

import json

from flattrain.lab import results
from recipes import TINY, call, write


def test_a_recipe_measures_the_average(tmp_path, monkeypatch, capsys):
    arm = "averaged: {model: {two_layer: {width: 12}}, train: {batch_size: 4, momentum: 0.5}, grid: {n: [12]}"
    arms = f"  {arm}, average: {{swa: {{start: 1}}}}, step_size: {{cdat: {{sigma: 1.0}}}}}}\n  batch:"
    write(tmp_path, TINY.replace("  batch:", arms))
    monkeypatch.chdir(tmp_path)
    code, _, err = call(capsys, "recipe=tiny", "out=run", "jobs=1")
    assert code == 0, err
    backends = json.loads((tmp_path / "run" / "run.json").read_text())["backends"]
    assert backends["averaged n=12"].endswith("weights averaged")
    table = results.read(tmp_path / "run" / "results.csv")
    point = (("n", "12"),)
    ours, theirs = (table.final("train_loss", arm, point) for arm in ("averaged", "batch"))
    assert ours and all(ours[seed] != theirs[seed] for seed in ours)
    code, _, err = call(capsys, "recipe=tiny", "arms.averaged.average.swa.evry=2")
    assert code == 2 and "did you mean 'every'" in err
    code, _, err = call(capsys, "recipe=tiny", "arms.averaged.average=null", "arms.averaged.step_size=cdta")
    assert code == 2 and "did you mean 'cdat'" in err


def test_an_arm_has_measures_of_its_own(tmp_path, monkeypatch, capsys):
    mine = "measures: {along: [train_loss, weight_norm], end: []}"
    write(tmp_path, TINY.replace("  batch: {", f"  batch: {{{mine}, "))
    monkeypatch.chdir(tmp_path)
    code, _, err = call(capsys, "recipe=tiny", "out=run", "jobs=1")
    assert code == 0, err
    table = results.read(tmp_path / "run" / "results.csv")
    claims = json.loads((tmp_path / "run" / "verdicts.json").read_text())["claims"]
    assert claims["falls"]["verdict"] == "supported"
    of = {arm: {r.quantity for r in table.rows if r.arm == arm} for arm in ("sam", "batch")}
    assert of["batch"] == {"train_loss", "weight_norm", "gradient_evaluations"}
    assert "test_error" in of["sam"] and "weight_norm" not in of["sam"]
    code, _, err = call(capsys, "recipe=tiny", "arms.batch.measures.along=[train_los]")
    assert code == 2 and "arms.batch.measures.along[0]" in err and "did you mean 'train_loss'" in err
