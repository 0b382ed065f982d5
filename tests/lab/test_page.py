"""The Markdown page of a run: whole, with its figures beside it, and what cannot be made a page."""

from __future__ import annotations

import gzip
import re

import pytest

from flattrain.lab import page
from recipes import CLAIM, ONE_ARM, call, write


@pytest.fixture
def home(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(
        tmp_path,
        ONE_ARM
        + CLAIM
        + '\nnotes: "Sizes are | ours.\\nFixed before the first run."'
        + "\nfigures: [{final: {quantity: train_loss, title: 'Loss | at the end'}}]",
    )
    assert call(capsys, "recipe=tiny", "out=run")[0] == 0
    return tmp_path


def test_a_page_has_all_sections_and_its_figures_exist(home, capsys):
    code, out, _ = call(capsys, "page", "run", "docs/claims")
    assert code == 0 and out.strip() == "docs/claims/tiny.md"
    for path in (home / "run" / "report.md", home / "docs" / "claims" / "tiny.md"):
        text = path.read_text()
        for section in (
            "What was found",
            "Method",
            "Verdicts",
            "Figures",
            "What would change the verdicts",
            "Run it",
        ):
            assert f"\n## {section}\n" in text
        assert "\n## Method\n\nSizes are \\| ours.\n\nFixed before the first run.\n\n- Data" in text
        assert "two_layer (width 7)" in text and "Seeds: 0 to 1." in text
        where = " out=run" if path.name == "report.md" else ""  # documentation does not say where
        assert "**falls**" in text and f"\npython -m flattrain recipe=tiny{where}\n" in text
        pictures = re.findall(r"^!\[.*?\]\((.+?)\)$", text, re.M)
        assert len(pictures) == 2 and all((path.parent / p).is_file() for p in pictures)
        assert "Loss \\| at the end" in text
    report = (home / "run" / "report.html").read_text()
    assert "<h2>About the trial</h2>" in report and "<p>Fixed before the first run.</p>" in report
    index = (home / "docs" / "claims" / "index.md").read_text()
    assert "| [tiny](tiny.md) | tiny | 1 undecided |" in index
    assert (home / "docs/claims/tiny/results.csv").read_bytes() == (home / "run/results.csv").read_bytes()


def test_a_large_table_is_packed_and_a_larger_one_left_out(home, capsys, monkeypatch):
    table = (home / "run/results.csv").read_bytes()
    monkeypatch.setattr(page, "LARGEST", len(table) - 1)
    assert call(capsys, "page", "run", "docs")[0] == 0
    assert gzip.decompress((home / "docs/tiny/results.csv.gz").read_bytes()) == table
    assert not (home / "docs/tiny/results.csv").exists()
    assert "[Every number](tiny/results.csv.gz)" in (home / "docs/tiny.md").read_text()
    monkeypatch.setattr(page, "LARGEST", 10)
    assert call(capsys, "page", "run", "docs")[0] == 0
    assert not list((home / "docs/tiny").glob("results*"))


def test_a_page_is_replaced_whole(home, capsys):
    stale = home / "docs" / "tiny"
    stale.mkdir(parents=True)
    (stale / "old.png").touch()
    assert call(capsys, "page", "run", "docs")[0] == 0
    assert not (stale / "old.png").exists() and len(list(stale.glob("*.png"))) == 2


def test_what_is_no_run_has_no_page(home, capsys):
    for words, said in (
        (("page", "run"), "page takes a run folder and a folder"),
        (("page", "nowhere", "docs"), "no such folder"),
    ):
        code, _, err = call(capsys, *words)
        assert code == 2 and said in err and err.count("\n") == 1
    (home / "run" / "report.md").unlink()
    code, _, err = call(capsys, "page", "run", "docs")
    assert code == 2 and "no report.md there" in err and not (home / "docs").exists()
