"""The report: one HTML file that opens anywhere, without network and without scripts. All text is escaped."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flattrain.lab import figures, tuning_table
from flattrain.lab.arms import names
from flattrain.lab.figure_style import save_png, svg
from flattrain.lab.figures_spec import FigureSpec, default_figures
from flattrain.lab.forest import forest
from flattrain.lab.markup import Cell, Markup, document, joined, table, tag, text
from flattrain.lab.provenance import diverged, provenance, warnings
from flattrain.lab.raw_numbers import raw_numbers
from flattrain.lab.recipe import Recipe
from flattrain.lab.results import Table
from flattrain.lab.run_folder import FIGURES
from flattrain.lab.summary import ANSWERS, RULES, count_by_verdict, interval_text, near_its_bound, number
from flattrain.lab.verdicts import Verdict


def write_report(
    path: Path, recipe: Recipe, record: dict[str, Any], table_: Table, verdicts: list[Verdict]
) -> dict[str, str]:
    """Write report.html, and each figure as a PNG in `figures/`; their files' names with their titles."""
    drawn = [figures.draw(spec, recipe, table_) for spec in chosen_figures(recipe)]
    claims = forest(verdicts)
    folder = path.parent / FIGURES
    folder.mkdir(exist_ok=True)
    saved: dict[str, str] = {}
    for one in [*drawn, *([claims] if claims else [])]:
        again = sum(title == one.title for title in saved.values())
        name = f"{slug(one.title)}{f'-{again + 1}' if again else ''}.png"
        save_png(one.figure, folder / name)
        saved[name] = one.title
    shown = [_figure(one, f"f{k}") for k, one in enumerate(drawn)]
    when = record.get("started", "")
    body = [
        tag("h1", recipe.title),
        tag("p", recipe.question, class_="question"),
        tag("p", f"{recipe.paper} · {recipe.seeds} seeds · started {when}", class_="small"),
        *warnings(record),
        tag("h2", "What was found"),
        *_found(verdicts),
        *diverged(record),
        _figures(shown[:2]),
        tag("h2", "Verdicts"),
        _verdict_table(verdicts),
        tag("p", RULES, class_="small"),
        *_lower_figures([_figure(claims, "claims")] if claims else [], shown[2:], len(verdicts)),
        *tuning_table.section(record),
        *raw_numbers(recipe, table_, record),
        *_notes(recipe),
        *provenance(record),
    ]
    beside = path.with_name(path.name + ".tmp")
    beside.write_text(document(recipe.title, body), encoding="utf-8", errors="replace")
    beside.replace(path)
    return saved


def chosen_figures(recipe: Recipe) -> tuple[FigureSpec, ...]:
    """The figures that the recipe names, or those that show its claims."""
    if recipe.figures:
        return recipe.figures
    parts = recipe.raw["measures"]
    along, end = (tuple(names(parts.get(part) or [])) for part in ("along", "end"))
    named = [claim.test.get(key) for claim in recipe.claims for key in ("quantity", "y", "x")]
    claimed = tuple(dict.fromkeys(name for name in named if name in (*along, *end)))
    points = {axis: {cell.point.get(axis) for cell in recipe.cells} - {None} for axis in recipe.axes}
    return default_figures(claimed, along, end, points)


def slug(title: str) -> str:
    """A title as the name of a file."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:60] or "figure"


def _notes(recipe: Recipe) -> Iterable[Markup]:
    """What the authors of the recipe say of it: what is theirs, and what was fixed when."""
    if recipe.notes:
        yield tag("h2", "About the trial")
        yield from (tag("p", line) for line in recipe.notes.splitlines() if line)


def _figure(drawn: figures.Drawn, key: str) -> Markup:
    caption = tag("figcaption", drawn.title, tag("small", drawn.note))
    return tag("figure", caption, Markup(svg(drawn.figure, drawn.alt, key)))


def _figures(shown: list[Markup]) -> Markup:
    return tag("div", *shown, class_="figures") if shown else Markup("")


def _lower_figures(claims: list[Markup], rest: list[Markup], count: int) -> list[Markup]:
    """The forest beside the other figures; by itself where it is much higher than they are."""
    return [_figures([*claims, *rest])] if count <= 8 else [_figures(claims), _figures(rest)]


def _badge(verdict: str, words: str) -> Markup:
    return tag("span", words, class_=f"verdict {verdict}")


def _found(verdicts: list[Verdict]) -> Iterable[Markup]:
    """How many of each, and every claim with its answer, in order: one may lean on the one before it."""
    counts = count_by_verdict(verdicts)
    yield tag("p", *(_badge(name, f"{count} {name}") for name, count in counts.items()))
    said = [tag("li", tag("strong", ANSWERS[v.verdict]), f" {v.claim.says}") for v in verdicts]
    yield tag("ul", *said[:6])
    if said[6:]:
        yield tag("details", tag("summary", f"{len(said) - 6} more"), tag("ul", *said[6:]))


def _verdict_table(verdicts: list[Verdict]) -> Markup:
    head = ("verdict", "claim", "estimate, interval", "predicted", "n")
    return table("Every claim with its verdict", head, [_row(v) for v in verdicts], kind="claims")


def _row(v: Verdict) -> list[Cell]:
    estimate = "" if v.interval is None else number(v.interval.estimate)
    facts = v.as_json()
    interval = f"{interval_text(v)}, {100 * facts['level']:g} %" if v.interval else ""
    where = "; ".join(filter(None, (facts.get("setting"), v.claim.source)))
    says = joined([tag("strong", v.claim.id), " ", v.claim.says])
    refuted = f"refuted if {v.claim.refuted_if}" if v.claim.refuted_if else "refuted otherwise"
    return [
        Cell(_badge(v.verdict, v.verdict)),
        Cell(_lines(_lines(says, v.reason or near_its_bound(v)), where), "says"),
        Cell(_lines(estimate, interval), "n", "estimate"),
        Cell(_lines(str(v.claim.predicts), refuted), "n", "predicted"),
        Cell("" if v.interval is None else v.interval.n, "n", "seeds"),
    ]


def _lines(first: Any, second: str) -> Markup:
    """The main thing, and a smaller line below it."""
    return joined([first, tag("small", second)], "<br>") if second else text(first)
