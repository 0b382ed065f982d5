"""The report: one HTML file that opens anywhere, without network and without scripts. All text is escaped."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from flattrain.lab import figures, tuning_table
from flattrain.lab.recipe import Recipe
from flattrain.lab.registration import said
from flattrain.lab.results import Table
from flattrain.lab.summary import interval_text, number
from flattrain.lab.verdicts import Verdict

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1f2328; max-width: 62rem;
  margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.6rem; line-height: 1.25; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
.question { font-size: 1.08rem; border-left: 4px solid #0072b2; padding: .1rem 0 .1rem 1rem; }
.counts span, .verdict { display: inline-block; padding: .1rem .55rem;
  border-radius: 1rem; color: #fff; font-size: .85rem; font-weight: 600; margin-right: .4rem; }
.supported { background: #1a7f37; } .refuted { background: #cf222e; } .undecided { background: #9a6700; }
.void, .missing { background: #8250df; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { text-align: left; padding: .45rem .6rem; border-bottom: 1px solid #d8dee4; vertical-align: top; }
td.n { white-space: nowrap; font-variant-numeric: tabular-nums; }
small, .small { color: #59636e; font-size: .85rem; }
figure { margin: 1.5rem 0; } figure svg { width: 100%; max-width: 46rem; height: auto; }
figcaption { font-weight: 600; }
pre { background: #f6f8fa; padding: .8rem; overflow-x: auto; font-size: .82rem; }
@media (max-width: 640px) {
  table.claims tr { display: block; padding: .6rem 0; border-bottom: 1px solid #d8dee4; }
  table.claims tr:first-child { display: none; }
  table.claims td { display: block; border: 0; padding: .1rem 0; white-space: normal; }
  table.claims td[data-head]::before { content: attr(data-head) ": "; color: #59636e; font-size: .85rem; }
  table.claims td br { display: none; }
  table.claims small { margin-left: .3rem; }
}
summary { cursor: pointer; font-weight: 600; margin: .6rem 0; }
"""


def write_report(
    path: Path, recipe: Recipe, record: dict[str, Any], table: Table, verdicts: list[Verdict]
) -> None:
    """Write report.html, and each figure as a PNG beside it."""
    drawn = [figures.draw(spec, recipe, table) for spec in recipe.figures]
    folder = path.parent / "figures"
    folder.mkdir(exist_ok=True)
    for title, figure in drawn:
        figure.savefig(folder / f"{_slug(title)}.png", dpi=150)
    shown = [
        f"<figure><figcaption>{_e(title)}</figcaption>{figures.svg(figure)}</figure>"
        for title, figure in drawn
    ]
    parts = [
        f"<h1>{_e(recipe.title)}</h1>",
        f'<p class="question">{_e(recipe.question)}</p>',
        f'<p class="small">{_e(recipe.paper)} · {recipe.seeds} seeds · {_e(record["started"])}</p>',
        f'<p class="small">{_e(said(record))}</p>' if said(record) else "",
        "<h2>What was found</h2>",
        _counts(verdicts),
        *shown[:1],
        "<h2>Verdicts</h2>",
        _verdict_table(verdicts),
        _rules(),
        *shown[1:2],
    ]
    if any(v.interval for v in verdicts):
        forest = figures.svg(figures.forest(verdicts))
        caption = "Every claim on its own scale; shaded is what was predicted, the bar is the 95 % interval"
        parts.append(f"<figure><figcaption>{caption}</figcaption>{forest}</figure>")
    parts += [
        *shown[2:],
        tuning_table.as_html(record),
        _numbers(recipe, table),
        _definitions(record),
        _provenance(record),
    ]
    body = "\n".join(parts)
    text = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>{_e(recipe.title)}</title><style>{STYLE}</style></head><body>\n{body}\n</body></html>\n"
    )
    path.write_text(text, encoding="utf-8")


def _e(text: Any) -> str:
    return html.escape(str(text))


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:60]


def _counts(verdicts: list[Verdict]) -> str:
    names = ("supported", "refuted", "undecided", "void", "missing")
    counts = {name: sum(v.verdict == name for v in verdicts) for name in names}
    shown = "".join(f'<span class="{n}">{c} {n}</span>' for n, c in counts.items() if c)
    firm = [v for v in verdicts if v.verdict in ("supported", "refuted")]
    said = "".join(
        f"<li><strong>{'Yes' if v.verdict == 'supported' else 'No'}.</strong> {_e(v.claim.says)}</li>"
        for v in firm[:6]
    )
    open_ = [v for v in verdicts if v not in firm]
    rest = f"<p>Not settled: {', '.join(_e(v.claim.id) for v in open_)}.</p>" if open_ else ""
    return f'<p class="counts">{shown}</p><ul>{said}</ul>{rest}'


def _verdict_table(verdicts: list[Verdict]) -> str:
    rows = []
    for v in verdicts:
        estimate = "" if v.interval is None else number(v.interval.estimate)
        seeds = "" if v.interval is None else str(v.interval.n)
        reason = f"<br><small>{_e(v.reason)}</small>" if v.reason else ""
        refuted = v.claim.refuted_if or f"not {v.claim.predicts}"
        rows.append(
            f'<tr><td><span class="verdict {v.verdict}">{v.verdict}</span>{reason}</td>'
            f"<td><strong>{_e(v.claim.id)}</strong> {_e(v.claim.says)}"
            f"<br><small>{_e(v.claim.source)}</small></td>"
            f'<td class="n" data-head="estimate">{estimate}<br>'
            f"<small>{_e(interval_text(v))}</small></td>"
            f'<td class="n" data-head="predicted">{_e(v.claim.predicts)}<br>'
            f"<small>refuted if {_e(refuted)}</small></td>"
            f'<td class="n" data-head="seeds">{seeds}</td></tr>'
        )
    head = "<tr><th>verdict</th><th>claim</th><th>estimate, 95 %</th><th>predicted</th><th>n</th></tr>"
    return f'<div class="wide"><table class="claims">{head}{"".join(rows)}</table></div>'


def _rules() -> str:
    return (
        '<p class="small">Supported: the estimate lies where predicted and the interval excludes the '
        "refuting region. Refuted: the other way round. Undecided: neither. Void: a condition of the claim "
        "does not hold. n counts seeds; intervals come from a paired bootstrap over seeds (proportions: "
        "Clopper–Pearson).</p>"
    )


def _numbers(recipe: Recipe, table: Table) -> str:
    """Median and range over seeds of every quantity at the end of every cell."""
    quantities = list(dict.fromkeys(row.quantity for row in table.rows))
    head = "<tr><th>arm</th>" + "".join(f"<th>{_e(q.replace('_', ' '))}</th>" for q in quantities)
    rows = []
    for cell in recipe.cells:
        point = tuple((k, str(v)) for k, v in cell.point.items())
        cells = [f"<td>{_e(cell.label)}</td>"]
        for quantity in quantities:
            values = list(table.final(quantity, cell.arm, point).values())
            cells.append(f'<td class="n">{_spread(values)}</td>')
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return (
        "<h2>Numbers</h2><p class='small'>Median over seeds, with the smallest and the largest, at the "
        "end of training. The whole table is results.csv beside this file.</p>"
        "<details><summary>Show</summary>"
        f'<div class="wide"><table>{head}</tr>{"".join(rows)}</table></div></details>'
    )


def _spread(values: list[float]) -> str:
    if not values:
        return ""
    low, high = number(min(values)), number(max(values))
    ends = "" if low == high else f"<br><small>{low} … {high}</small>"
    return number(float(np.median(values))) + ends


def _definitions(record: dict[str, Any]) -> str:
    entries = record.get("definitions", {})
    rows = "".join(f"<tr><td>{_e(k)}</td><td>{_e(v)}</td></tr>" for k, v in sorted(entries.items()))
    return (
        "<details><summary>What each number is</summary>"
        f'<div class="wide"><table>{rows}</table></div></details>'
    )


def _provenance(record: dict[str, Any]) -> str:
    versions = ", ".join(f"{k} {v}" for k, v in sorted(record["versions"].items()))
    paths = "".join(
        f"<tr><td>{_e(k)}</td><td>{_e(v)}</td></tr>" for k, v in record.get("backends", {}).items()
    )
    recipe = json.dumps(record["recipe"], indent=2, ensure_ascii=False)
    return (
        f"<h2>Reproduce</h2><pre>{_e(record['command'])}</pre>"
        f'<p class="small">trial {_e(record["key"])} · commit {_e(record["commit"] or "unknown")} · '
        f"{_e(versions)} · {_e(record.get('core_seconds', '?'))} core-seconds</p>"
        f'<details><summary>Which code trained each cell</summary><div class="wide"><table>{paths}</table>'
        f"</div></details><details><summary>The recipe</summary><pre>{_e(recipe)}</pre></details>"
    )
