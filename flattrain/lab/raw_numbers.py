"""The numbers behind a report, folded: the spread over seeds of every arm, and every run at its last step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from flattrain.lab.markup import Cell, Markup, folded, joined, table, tag
from flattrain.lab.recipe import Recipe
from flattrain.lab.results import Table
from flattrain.lab.summary import number

MOST = 1000  # rows of single runs; a page stays quick to open


def raw_numbers(recipe: Recipe, rows: Table, record: dict[str, Any]) -> Iterable[Markup]:
    """The section of numbers."""
    quantities = list(dict.fromkeys(row.quantity for row in rows.rows))
    cells = [(cell, tuple((k, str(v)) for k, v in cell.point.items())) for cell in recipe.cells]
    words = [name.replace("_", " ") for name in quantities]
    yield tag("h2", "Numbers")
    yield tag("p", "At the end of training. The whole table is results.csv beside this file.", class_="small")
    spread, single = [], []
    for cell, point in cells:
        final = [rows.final(quantity, cell.arm, point) for quantity in quantities]
        spread.append([cell.label, *(Cell(_spread(list(f.values())), "n") for f in final)])
        for seed in sorted(set().union(*final)):
            values = (number(f[seed]) if seed in f else "" for f in final)
            single.append([cell.label, Cell(seed, "n"), *(Cell(v, "n") for v in values)])
    caption = "Median over seeds, with the smallest and the largest"
    yield folded("Each arm: median and range over seeds", table(caption, ["arm", *words], spread))
    yield folded("Each run", *_runs(["arm", "seed", *words], single))
    meaning = sorted(record.get("definitions", {}).items())
    if meaning:
        yield folded("What each number is", table("Definitions", ["quantity", "definition"], meaning))


def _runs(head: Sequence[str], single: list[list[Any]]) -> Iterable[Markup]:
    if len(single) > MOST:
        yield tag("p", f"The first {MOST} of {len(single)} runs; the others are in results.csv.")
    yield table("Every run at its last step", head, single[:MOST])


def _spread(values: list[float]) -> Markup | str:
    if not values:
        return ""
    finite = [v for v in values if math.isfinite(v)]
    lost = len(values) - len(finite)
    notes = [f"{lost} of {len(values)} not finite"] if lost else []
    if not finite:
        return notes[0]
    low, high = number(min(finite)), number(max(finite))
    if low != high:
        notes.insert(0, f"{low} … {high}")
    return joined([number(float(np.median(finite))), *(tag("small", note) for note in notes)], "<br>")
