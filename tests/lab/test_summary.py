"""The verdicts on a screen: never more lines or columns than there are."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest

from flattrain.lab.claims import Scope, read_claims
from flattrain.lab.summary import count_by_verdict, near_its_bound, print_summary
from flattrain.lab.verdicts import Interval, Verdict

SCOPE = Scope(("a",), {}, ("error",))
TEST = {"median": {"quantity": "error", "arm": "a"}}


def verdicts_of(names):
    table = {
        f"W{k}-a-claim-with-a-very-long-name-number-{k}": {
            "says": "x",
            "test": TEST,
            "predicts": {"below": 1},
        }
        for k in range(len(names))
    }
    found = Interval(-0.123456, -1234.5678, 0.000123456, 8)
    return [
        Verdict(claim, name, None if name in ("void", "missing") else found, "[red]because[/red] " * 9)
        for claim, name in zip(read_claims(table, SCOPE), names, strict=True)
    ]


@pytest.fixture
def lines(capsys, monkeypatch, tmp_path):
    def show(names, width=80, height=24, notes=()):
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setenv("LINES", str(height))
        monkeypatch.chdir(tmp_path)
        recipe = SimpleNamespace(title="A title [bold]that is[/bold] " + "long " * 40)
        print_summary(recipe, verdicts_of(names), tmp_path / "runs" / "x", notes)
        out = capsys.readouterr().out.splitlines()
        assert len(out) < height and max(map(len, out)) <= width, out
        assert out[-1] == "report: runs/x/report.html"
        return out

    return show


def rows_of(lines):
    return [re.search(r"supported|refuted|undecided|void|missing", x)[0] for x in lines if x.startswith("W")]


def test_few_claims_all_with_the_reasons_of_the_void(lines):
    out = lines(["supported", "void", "refuted", "missing"])
    assert rows_of(out[:6]) == ["supported", "void", "refuted", "missing"]
    assert sum("[red]because[/red]" in line for line in out) == 2
    assert out[-2] == "1 supported · 1 refuted · 1 void · 1 missing"
    assert "-0.1235" in out[2] and "[-1235, 0.0001235]" in out[2] and "< 1" in out[2]


@pytest.mark.parametrize(("width", "height"), [(80, 24), (40, 12), (200, 30), (80, 10)])
def test_what_needs_a_look_stays_where_not_all_fit(lines, width, height):
    names = ["supported"] * 30 + ["void"] * 3 + ["refuted", "undecided"] + ["supported"] * 20
    out = lines(names, width, height)
    shown = rows_of([x for x in out if ": void: " not in x])
    assert "refuted" in shown
    if height > 12:
        assert {"void", "undecided"} <= set(shown)
    left = int(re.search(r"… and (\d+) more claims", "\n".join(out))[1])
    assert left + len(shown) == len(names)
    assert "50 supported · 1 refuted · 1 undecided · 3 void" in " ".join(out)


def test_exactly_as_many_as_fit_are_all_shown(lines):
    room = next(n for n in range(1, 30) if "more claims" in "\n".join(lines(["supported"] * n))) - 1
    assert room >= 17 and len(lines(["supported"] * room)) == 23


def test_notes_are_never_cut(lines):
    notes = [
        "The trial was changed after results were seen: " + "claims.falls.predicts, " * 9,
        "one run diverged",
    ]
    out = lines(["supported"] * 40, notes=notes)
    assert " ".join(" ".join(out).split()).count("claims.falls.predicts,") == 9 and "one run diverged" in out


def test_no_claims(lines):
    assert "no claims" in lines([])


def test_counts_leave_out_what_there_is_none_of():
    assert count_by_verdict(verdicts_of(["void", "supported", "void"])) == {"supported": 1, "void": 2}


def test_a_firm_verdict_near_its_bound_says_how_often_it_comes_again():
    (found,) = verdicts_of(["supported"])
    assert "about 61 of 100 trials" in near_its_bound(found._replace(same_again=0.611))
    assert near_its_bound(found._replace(same_again=0.96)) == near_its_bound(found) == ""
