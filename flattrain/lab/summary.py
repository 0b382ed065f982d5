"""The verdicts in the terminal, on one screen."""

from __future__ import annotations

import math
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from flattrain.lab.recipe import Recipe
from flattrain.lab.verdicts import Verdict

COLOURS = {
    "supported": "green",
    "refuted": "red",
    "undecided": "yellow",
    "void": "magenta",
    "missing": "magenta",
}


def number(value: float) -> str:
    """Four significant digits; a bound that is not finite as an ellipsis."""
    return f"{value:.4g}" if math.isfinite(value) else "…"


def interval_text(verdict: Verdict) -> str:
    """[low, high], or nothing."""
    found = verdict.interval
    return "" if found is None else f"[{number(found.low)}, {number(found.high)}]"


def print_summary(recipe: Recipe, verdicts: list[Verdict], folder: Path) -> None:
    """One line per claim, and where the report is."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)
    table = Table(title=recipe.title, title_justify="left", box=None, pad_edge=False)
    table.add_column("claim", no_wrap=True)
    for heading in ("verdict", "estimate", "95 % interval", "predicted"):
        table.add_column(heading)
    for v in verdicts:
        colour = COLOURS[v.verdict]
        estimate = "" if v.interval is None else number(v.interval.estimate)
        table.add_row(
            v.claim.id,
            f"[{colour}]{v.verdict}[/{colour}]",
            estimate,
            interval_text(v),
            str(v.claim.predicts),
        )
    console.print(table)
    for v in verdicts:
        if v.verdict in ("void", "missing"):
            console.print(f"{v.claim.id}: {v.verdict}: {v.reason}", markup=False)
    console.print(f"report: {folder / 'report.html'}", markup=False, soft_wrap=True)
