"""The report as a page: whole, escaped, the same bytes again, and what it says about how the numbers came."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from flattrain.lab.compose import composed
from flattrain.lab.figure_style import DARK, PALETTE
from flattrain.lab.provenance import diverged, warnings
from flattrain.lab.report import chosen_figures, slug, write_report
from flattrain.lab.results import Row, Table
from flattrain.lab.verdicts import judge
from recipes import TINY, write

NASTY = '<script>alert(1)</script> & "quotes" \' ]]> $x$ _a \u202e'
VOID = {"meta", "link", "br", "path", "use", "rect", "circle"}


def record_of(recipe, **more):
    return {
        "command": f"python -m flattrain recipe={NASTY}",
        "key": "abc",
        "started": "2026-01-01T00:00:00+00:00",
        "versions": {"torch": "2.13.0"},
        "commit": "0123456789ab",
        "recipe": recipe.raw,
        "definitions": {"train_loss": NASTY},
        "backends": {"sam n=8": NASTY},
    } | more


def table_of(recipe, value=lambda seed, step: 1.0 / (1 + seed + step)):
    quantities = ("train_loss", "test_error", "two_layer_trace")
    return Table(
        Row(
            cell.arm, tuple((k, str(v)) for k, v in cell.point.items()), seed, step, q, value(seed, step), 0.0
        )
        for cell in recipe.cells
        for q in quantities
        for seed in range(3)
        for step in ((300,) if q == "two_layer_trace" else (0, 10, 300))
    )


@pytest.fixture
def report(tmp_path, monkeypatch):
    """Write the report of a recipe like the tiny one; the text of the page."""
    monkeypatch.chdir(tmp_path)

    def make(text=TINY, rows=table_of, folder="out", **record):
        write(tmp_path, text)
        recipe = composed(["recipe=tiny"])
        table = rows(recipe)
        (tmp_path / folder).mkdir(exist_ok=True)
        page = tmp_path / folder / "report.html"
        verdicts = [judge(claim, table) for claim in recipe.claims]
        write_report(page, recipe, record_of(recipe, **record), table, verdicts)
        return page.read_text(encoding="utf-8")

    return make


class Page(HTMLParser):
    """Tags with attributes, and a check that every tag is closed where it was opened."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def test_hostile_text_stays_text(report):
    hostile = TINY
    for words in ("A tiny study", "The loss is below one.", "a test", "paper: none"):
        hostile = hostile.replace(words, words + f" {NASTY}".replace("'", "").replace("\\", ""))
    hostile = re.sub(r"(title|says|source|paper): (?!\")(.*)", lambda m: f"{m[1]}: '{m[2]}'", hostile)
    page = Page(report(hostile))
    assert not page.all("script") and not page.all("img") and not page.all("iframe")
    assert "".join(page.text).count("<script>alert(1)</script>") >= 6
    for _, attrs in page.tags:
        assert not any(name.startswith("on") for name in attrs)
        for name in ("src", "href", "xlink:href"):
            assert attrs.get(name, "#").startswith(("#", "data:,"))
    (policy,) = [m["content"] for m in page.all("meta") if "http-equiv" in m]
    assert policy.startswith("default-src 'none'")
    assert "url(" not in re.sub(r"url\(#[\w-]+\)", "", "".join(str(t) for t in page.tags))


def test_equal_runs_give_equal_bytes(report):
    assert report(folder="one") == report(folder="two")


def test_no_id_is_used_twice_and_every_reference_has_its_target(report):
    text = report()
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids)) and len(ids) > 50
    used = set(re.findall(r'href="#([^"]+)"', text)) | set(re.findall(r"url\(#([^)]+)\)", text))
    assert used <= set(ids)


def test_figures_have_words_and_tables_have_headings(report):
    page = Page(report())
    labels = [svg["aria-label"] for svg in page.all("svg")]
    assert len(labels) == 4 and all(svg["role"] == "img" for svg in page.all("svg"))
    assert "from 0.5 to 0.00331" in labels[0]  # the median seed is 1: 1 / 2 and 1 / 302
    assert "falls: supported, 0.003311 [0.003" in labels[2] and "predicted < 1" in labels[2]
    assert len(page.all("caption")) == len(page.all("table")) == len(page.all("thead"))
    assert {h["scope"] for h in page.all("th")} == {"row", "col"}
    assert all(d["tabindex"] == "0" for d in page.all("div") if d.get("class") == "wide")
    assert page.all("html")[0]["lang"] == "en" and len(page.all("h1")) == len(page.all("main")) == 1


def test_where_the_numbers_come_from(report):
    text = report()
    for words in ("0 to 2", "0123456789ab", "2.13.0", "0.003311", "1 supported", "1 refuted", "1 void"):
        assert words in text
    assert "after it had been registered" not in text


def test_a_changed_registration_is_said_in_the_open(report):
    first = {"time": "2026-01-01", "hash": "aaa", "changed": []}
    second = {
        "time": "2026-01-02",
        "key": "bbb",
        "changed": ["claims.falls.predicts: 1 -> 2", NASTY],
        "results_seen": True,
    }
    text = report(registrations=[first, second])
    warning = text[text.index('class="warning"') : text.index("What was found")]
    assert "claims.falls.predicts: 1 -&gt; 2" in warning and "2026-01-02" in warning
    assert "&lt;script&gt;" in warning and "after results had been seen" in warning and "bbb" in text
    for fine in ([first], "yes", [1, 2], [{}], None):
        assert not list(warnings({"registrations": fine}))
    assert "all" in next(iter(warnings({"registrations": [{}, {"changed": "all"}]})))


def test_diverged_runs_are_listed():
    lost = [{"cell": "sam n=8", "seed": 1, "step": 40, "why": NASTY}, {"cell": "b", "seed": 2}]
    (found,) = diverged({"diverged": lost})
    page = Page(found)
    assert "2 runs diverged" in found and NASTY in page.text and "40" in page.text
    assert len(page.all("tr")) == 3 and not page.all("script")
    for none in ({}, {"diverged": []}, {"diverged": "x"}):
        assert not list(diverged(none))


@pytest.mark.parametrize("value", [float("nan"), 1e308, -1.0])
def test_values_that_cannot_be_drawn(report, value):
    """Some runs, then all, with a value that has no place on a logarithmic axis."""
    odd = TINY[: TINY.index("claims:")] + "figures: [{scatter: {x: train_loss, y: test_error, log: xy}}]"
    some = report(odd, rows=lambda r: table_of(r, lambda seed, step: value if seed else 1.0 + step))
    left_out = not abs(value) < 1e150
    assert ("6 runs without a finite value are left out" in some) == left_out
    every = report(odd, rows=lambda r: table_of(r, lambda seed, step: value))
    assert ("9 runs without a finite value are left out" in every) == left_out
    assert len(Page(some).all("svg")) == len(Page(every).all("svg")) == 1


def test_seeds_that_stopped_early_and_arms_without_rows(report):
    def rows(recipe):
        return Table(
            row
            for row in table_of(recipe).rows
            if row.arm == "sam" and not (row.seed == 2 and row.step > 10) and row.point != (("n", "8"),)
        )

    labels = [svg["aria-label"] for svg in Page(report(rows=rows)).all("svg")]
    assert "from 0.5 to 0.00332" in labels[0] and "batch" not in labels[0]


def test_every_claim_has_its_answer_in_order(report):
    text = report()
    found = text[text.index("What was found") : text.index("<figure")]
    said = re.findall(r"<li><strong>(\w+)\.</strong> (.*?)</li>", found)
    assert [claim for _, claim in said] == [
        "The loss is below one.",
        "The loss is above ten.",
        "Nothing, as the condition cannot hold.",
    ]
    assert [answer for answer, _ in said] == ["Yes", "No", "Void"]


def test_a_recipe_without_figures_gets_those_that_show_its_claims(report, tmp_path):
    bare = TINY[: TINY.index("figures:")]
    assert Page(report(bare)).all("svg")
    kinds = [(f.kind, f.settings) for f in chosen_figures(composed(["recipe=tiny"]))]
    assert kinds == [
        ("trajectory", {"quantity": "train_loss"}),
        ("trajectory", {"quantity": "test_error"}),
        ("sweep", {"over": "n", "quantity": "train_loss"}),
        ("sweep", {"over": "n", "quantity": "test_error"}),
        ("scatter", {"x": "two_layer_trace", "y": "test_error"}),
    ]
    figures = sorted(p.name for p in (tmp_path / "out" / "figures").iterdir())
    assert len(figures) == 6 and "claims-against-their-predictions.png" in figures


def test_titles_as_files():
    assert slug("A < B & C") == "a-b-c" and slug("…") == "figure" and len(slug("x" * 999)) == 60


def test_twice_the_same_title(report, tmp_path):
    report(TINY.replace("log: y}", 'title: "A < B & C"}'))
    names = {p.name for p in (tmp_path / "out" / "figures").iterdir()}
    assert {"a-b-c.png", "a-b-c-2.png"} <= names


def luminance(colour):
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, two):
    low, high = sorted([luminance(one), luminance(two)])
    return (high + 0.05) / (low + 0.05)


def test_contrast_in_light_and_dark(report):
    """WCAG 2.2: 3 to 1 for marks, 4.5 to 1 for letters."""
    text = report()
    shades = [
        dict(re.findall(r"--(\w+): (#\w{6})", block)) for block in re.findall(r":root {[^}]*}", text)[:2]
    ]
    for shade, palette in zip(shades, (PALETTE, DARK), strict=True):
        assert all(contrast(colour, shade["paper"]) >= 3 for colour in palette)
        for ink in ("ink", "soft", "accent"):
            assert contrast(shade[ink], shade["paper"]) >= 4.5
        assert contrast(shade["ink"], shade["warn"]) >= 4.5 and contrast(shade["ink"], shade["panel"]) >= 4.5
    for kind in ("supported", "refuted", "undecided", "void"):
        (colour,) = re.findall(rf"\.{kind}\b[^{{}}]*{{ background: (#\w{{6}})", text)
        assert contrast(colour, "#ffffff") >= 4.5


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")
@pytest.mark.parametrize("width", [1280, 400])
def test_a_browser_opens_it_without_complaint_and_nothing_sticks_out(report, tmp_path, width):
    """The page in a frame of that width; with everything unfolded it must not scroll sideways."""
    import html

    text = report()
    bare = re.sub(r"<meta http-equiv[^>]*>", "", text)  # or the probe itself would be refused
    probe = tmp_path / "probe.html"
    probe.write_text(
        f'<!doctype html><iframe width="{width}" height="900" srcdoc="{html.escape(bare)}"></iframe>'
        "<script>onload = () => { const page = frames[0].document.documentElement;"
        "page.querySelectorAll('details').forEach(d => d.open = true);"
        "document.title = `${page.clientWidth} ${page.scrollWidth}`; }</script>"
    )
    for path in (probe, tmp_path / "out" / "report.html"):
        done = subprocess.run(
            [
                BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
                f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,1000", "--dump-dom",
                path.as_uri(),
            ],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert ":CONSOLE" not in done.stderr, done.stderr
        if path == probe:
            inside, needed = map(int, re.search(r"<title>(\d+) (\d+)</title>", done.stdout).groups())
            assert needed <= inside <= width and inside > width - 30
