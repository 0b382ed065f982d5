"""Runs side by side: what changed, what overlaps, which settings differ, which folders are broken."""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import pytest

from flattrain.lab.compare_runs import compare
from recipes import call

CLAIM = {
    "verdict": "supported", "estimate": 1.0, "interval": [0.5, 1.5], "n": 5, "says": "A <b> & | C.",
    "test": {"median": {"quantity": "error", "arm": "a"}}, "predicts": "> 0", "refuted_if": "not > 0",
}  # fmt: skip
RECIPE = {
    "title": "T", "seeds": 5, "first_seed": 0, "train": {"lr": 0.1, "steps": None}, "jobs": 0, "out": None,
    "arms": {"a": {"rule": {"sam": {"rho": 0.1}}}, "b": {}}, "claims": {"one": {"predicts": {"above": 0}}},
}  # fmt: skip


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Write a run folder that differs in some dotted settings and some claims."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def make(name, settings=(), commit="c0", **claims):
        recipe = copy.deepcopy(RECIPE)
        for path, value in dict(settings).items():
            node, *rest = [recipe, *path.split(".")]
            for part in rest[:-1]:
                node = node.setdefault(part, {})
            node[rest[-1]] = value
        folder = tmp_path / name
        folder.mkdir(parents=True)
        record = {"name": "tiny", "key": name, "commit": commit, "recipe": recipe, "command": f"run {name}"}
        (folder / "run.json").write_text(json.dumps(record | {"versions": {"torch": "2"}}))
        found = {k: CLAIM | v for k, v in claims.items() if v is not None}
        (folder / "verdicts.json").write_text(json.dumps({"claims": found}))
        return folder

    return make


def test_what_changed(run):
    one = run("one", one={}, two={}, three={"interval": [None, None], "estimate": 3.0}, four={})
    two = run(
        "two",
        one={"verdict": "refuted", "interval": [-1, 0.4], "estimate": 0.0},
        two={"interval": [1.5, 2]},
        three={"predicts": "> 9", "interval": [8, 9], "estimate": 8.5},
        five={"verdict": "void", "estimate": None, "interval": None, "n": 0},
    )
    found = {c.claim: c for c in compare([one, two]).claims}
    assert list(found) == ["one", "two", "three", "four", "five"]
    assert [c.changed for c in found.values()] == [True, False, False, False, False]
    assert [c.overlap for c in found.values()] == [False, True, True, None, None]
    assert [c.same_terms for c in found.values()] == [True, True, False, True, True]
    assert found["one"].remark == "verdict changed, intervals apart"
    assert found["five"].runs[0] is None and found["five"].remark == "not in every run"


def test_three_runs_overlap_only_if_every_two_do(run):
    folders = [run(f"r{k}", one={"interval": [k, k + 1.5]}) for k in range(3)]
    assert compare(folders[:2]).claims[0].overlap and not compare(folders).claims[0].overlap


def test_which_settings_differ(run):
    changes = {
        "seeds": 8, "train.lr": 0.2, "train.steps": 7, "arms.a.rule.sam.rho": 0.2, "arms.c.rule.sam.rho": 9,
        "title": "another", "jobs": 3, "out": "x",
    }  # fmt: skip
    found = compare([run("deep/one"), run("two", changes, commit="c1")])
    assert found.labels == ("one", "two")
    assert found.differences == {
        "commit": ("c0", "c1"),
        "seeds": ("5", "8"),
        "train.lr": ("0.1", "0.2"),
        "train.steps": ("—", "7"),
        "arms.a.rule.sam.rho": ("0.1", "0.2"),
        "arms.c": ("—", "there"),
    }
    assert compare([run("x/same"), run("y/same")]).labels == ("x/same", "y/same")


def test_the_command(run, capsys, tmp_path):
    run("one", one={})
    run("two", {"seeds": 8}, one={"verdict": "undecided"}, two={})
    before = sorted(tmp_path.rglob("*"))
    code, out, err = call(capsys, "compare", "one", "two")
    assert code == 0 and not err and sorted(tmp_path.rglob("*")) == before
    assert (
        "1 of 2 verdicts changed: one." in out and "verdict changed" in out and "All intervals overlap" in out
    )
    assert "1 [0.5, 1.5]" in out and "seeds" in out and max(map(len, out.splitlines())) <= 80

    code, out, _ = call(capsys, "compare", "one", "two", "out=a.html")
    text = (tmp_path / "a.html").read_text()
    assert code == 0 and "written: a.html" in out
    assert "A &lt;b&gt; &amp; | C." in text and "<script" not in text and "run two" in text
    assert text.count('class="verdict supported"') == 2 and text.count('class="verdict undecided"') == 1

    assert call(capsys, "compare", "one", "two", "out=a.md")[0] == 0
    rows = [line for line in (tmp_path / "a.md").read_text().splitlines() if line.startswith("| one")]
    assert rows == ["| one | supported 1 [0.5, 1.5] | undecided 1 [0.5, 1.5] | verdict changed |"]

    assert call(capsys, "compare", "one", "two", "out=a.json")[0] == 0
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["claims"]["one"]["verdict_changed"] and found["claims"]["two"]["runs"][0] is None
    assert found["differences"] == {"seeds": ["5", "8"]}
    assert not list(tmp_path.glob("*.tmp"))


def test_what_cannot_be_compared_gets_one_line(run, capsys, tmp_path):
    run("one", one={})
    run("two", one={})
    for name, file, text in (
        ("no-record", "run.json", None), ("no-verdicts", "verdicts.json", None),
        ("cut", "verdicts.json", '{"claims": {"one": {"verd'), ("list", "verdicts.json", "[]"),
        ("odd", "verdicts.json", '{"claims": {"one": {"verdict": 1, "estimate": "x", "interval": 3}}}'),
        ("deep", "run.json", "[" * 100_000), ("bare", "run.json", "{}"), ("bytes", "run.json", "\udcff"),
    ):  # fmt: skip
        folder = run(name, one={})
        (folder / file).unlink()
        if text is not None:
            (folder / file).write_bytes(text.encode(errors="surrogateescape"))
    bad = (
        ["one"], ["one", "one"], ["one", "./one"], ["one", "nowhere"], ["one", "no-record"],
        ["one", "no-verdicts"], ["one", "cut"], ["one", "list"], ["one", "odd"], ["one", "deep"],
        ["one", "bare"], ["one", "bytes"], ["one", "two", "out=x.txt"], ["one", "two", "out="],
        ["one", "two", "--all"], ["one", "two", "out=a.md", "out=b.md"], ["one", "two", "out=no/folder/a.md"],
    )  # fmt: skip
    before = sorted(tmp_path.rglob("*"))
    for words in bad:
        code, out, err = call(capsys, "compare", *words)
        assert code == 2 and not out and err.startswith("flattrain: ") and err.count("\n") == 1, (words, err)
    assert sorted(tmp_path.rglob("*")) == before
    assert "did you mean 'compare'" in call(capsys, "compar", "one", "two")[2]


def test_it_needs_no_torch(run):
    run("one", one={})
    run("two", one={})
    code = (
        "import sys; from flattrain.lab import cli; code = cli.run(['compare', 'one', 'two']);"
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
