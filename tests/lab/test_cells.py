"""What is run again after a change, and what is taken as it is: only content decides."""

from __future__ import annotations

import json

import pytest

from flattrain.lab import results
from flattrain.lab.cells import SEEDS_TOGETHER, Store, blocks
from flattrain.lab.compose import composed
from flattrain.lab.execute import missing
from flattrain.lab.study import store_of
from recipes import ARMS, CLAIM, ONE_ARM, call, write


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, ONE_ARM)
    return tmp_path


def pretend(home, recipe):
    """Files of finished blocks with made-up numbers, as if they had been run."""
    store = store_of(recipe)
    store.folder.mkdir(parents=True, exist_ok=True)
    for cell in recipe.cells:
        for block in blocks(cell):
            row = {"seed": 0, "step": 0, "quantity": "train_loss", "value": 1.0, "standard_error": 0.0}
            result = {"rows": [row], "backend": "", "definitions": {}, "diverged": [], "seconds": 0}
            store.save(block, json.dumps(result))
    return store


def to_run(*words):
    recipe = composed(["recipe=tiny", *words])
    return [(b.cell.label, b.spec["first_seed"], b.spec["seeds"]) for b in missing(recipe, store_of(recipe))]


def test_more_seeds_run_only_the_new_ones(home):
    pretend(home, composed(["recipe=tiny", "seeds=8"]))
    assert SEEDS_TOGETHER == 8
    assert to_run("seeds=20") == [("plain", 8, 8), ("plain", 16, 4)]
    assert to_run("seeds=16") == [("plain", 8, 8)]
    assert to_run("seeds=5") == [("plain", 0, 5)]  # another stack: its last bits may differ
    assert to_run("seeds=8", "first_seed=8") == [("plain", 8, 8)]


def test_what_makes_no_number_makes_no_run(home):
    pretend(home, composed(["recipe=tiny"]))
    claim = "claims.c={says: x, test: {median: {quantity: train_loss, arm: plain}}, predicts: {below: 1}}"
    for words in (["title=x"], [claim], ["figures=[{trajectory: {quantity: train_loss}}]"], ["jobs=1"]):
        assert to_run(*words) == [], words
    for word in ("train.lr=0.03", "train.steps=21", "precision=float64", "measures.along=[test_error]"):
        assert to_run(word) == [("plain", 0, 2)], word
    net = "model: {two_layer: {width: 7}}"
    write(home, ONE_ARM.replace(ARMS, f"{{renamed: {{{net}}}, new: {{{net}, rule: sam}}}}"))
    assert to_run() == [("new", 0, 2)]


def test_two_arms_of_the_same_content_run_once(home):
    net = "model: {two_layer: {width: 7}}"
    write(home, ONE_ARM.replace(ARMS, f"{{plain: {{{net}}}, again: {{{net}}}}}"))
    recipe = composed(["recipe=tiny"])
    assert [c.arm for c in recipe.cells] == ["plain", "again"] and len(to_run()) == 1


def test_other_code_and_other_libraries_run_again(home, monkeypatch):
    pretend(home, composed(["recipe=tiny"]))
    assert to_run() == []
    monkeypatch.setattr("flattrain.lab.cells.library_versions", lambda: {"torch": "another"})
    assert to_run() == [("plain", 0, 2)]
    monkeypatch.undo()
    monkeypatch.chdir(home)
    monkeypatch.setattr("flattrain.lab.cells.code_digest", lambda: "another")
    assert to_run() == [("plain", 0, 2)]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"rows": []}', '{"rows": [1]}', "\x00", '{"rows": {"a": 1}}']
)
def test_a_damaged_block_is_run_again(home, text):
    store = pretend(home, composed(["recipe=tiny"]))
    (file,) = store.folder.glob("*.json")
    whole = json.loads(file.read_text())
    file.write_text(text)
    assert to_run() == [("plain", 0, 2)]
    file.write_text(json.dumps(whole | {"rows": [{"seed": 0}]}))
    assert to_run() == [("plain", 0, 2)]
    file.write_text(json.dumps(whole))
    assert to_run() == []


def test_where_blocks_lie(home):
    assert store_of(composed(["recipe=tiny"])).folder.as_posix() == "runs/cells"
    assert store_of(composed(["recipe=tiny", "out=here"])).folder.as_posix() == "here/cells"
    assert store_of(composed(["recipe=tiny", "out=here", "store=there"])).folder.as_posix() == "there"
    assert isinstance(store_of(composed(["recipe=tiny"])), Store)


def test_a_grown_study_is_the_fresh_one_and_says_that_it_grew(tmp_path, monkeypatch, capsys):
    """seeds 8, then 10 and a bound: the table of a fresh run with 10, and both changes in the record."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path, ONE_ARM + CLAIM)
    bound = "claims.falls.predicts.below=2.0"
    assert call(capsys, "recipe=tiny", "seeds=8", "out=grown")[0] == 0
    small = (tmp_path / "grown" / "results.csv").read_bytes()
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "grown" / "cells").iterdir()}
    code, out, _ = call(capsys, "recipe=tiny", "seeds=10", "out=grown", bound)
    assert code == 0 and "after results were seen" in out
    assert all(p.stat().st_mtime_ns == t for p, t in times.items())
    assert call(capsys, "recipe=tiny", "seeds=10", "out=fresh", bound)[0] == 0
    for name in ("results.csv", "verdicts.json"):
        assert (tmp_path / "grown" / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes()
    assert {r.seed for r in results.read(tmp_path / "grown" / "results.csv").rows} == set(range(10))

    record = json.loads((tmp_path / "grown" / "run.json").read_text())
    first, second = record["registrations"]
    assert "changed" not in first and second["key"] == record["key"] != first["key"]
    assert second["changed"] == ["seeds 8 → 10", "claims.falls.predicts.below 1.0 → 2.0"]
    assert second["results_seen"] is True
    for page in ("report.html", "report.md"):
        assert "seeds 8 → 10" in (tmp_path / "grown" / page).read_text()
        assert "The trial was changed" not in (tmp_path / "fresh" / page).read_text()
    assert (tmp_path / "grown" / "earlier" / first["key"] / "results.csv").read_bytes() == small
