"""The verdicts in words, and in the terminal on one screen."""

from __future__ import annotations

import math
import os
import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flattrain.lab.recipe import Recipe
from flattrain.lab.verdicts import Verdict

COLOURS = {
    "supported": "green",
    "refuted": "red",
    "undecided": "yellow",
    "void": "magenta",
    "missing": "magenta",
}
ANSWERS = {
    "supported": "Yes.",
    "refuted": "No.",
    "undecided": "Open.",
    "void": "Void.",
    "missing": "Missing.",
}
RULES = (
    "Supported: the estimate lies where predicted and the interval excludes the refuting region. Refuted: "
    "the other way round. Undecided: neither. Void: a condition of the claim does not hold. Missing: the "
    "table has no rows for it. n counts seeds, and intervals are over seeds."
)
NEARLY_ALWAYS = 0.95
# Where not every claim fits, those that need a look stay and the rest is counted.
LEAVE_OUT_FIRST = ("supported", "missing", "void", "undecided", "refuted")


def number(value: float) -> str:
    """Four significant digits; a bound that is not finite as an ellipsis."""
    return f"{value:.4g}" if math.isfinite(value) else "…"


def interval_text(verdict: Verdict) -> str:
    """[low, high], or nothing."""
    found = verdict.interval
    return "" if found is None else f"[{number(found.low)}, {number(found.high)}]"


def near_its_bound(verdict: Verdict) -> str:
    """How often other seeds would give a firm verdict again, where that is not nearly always; or nothing."""
    chance = verdict.same_again
    if chance is None or chance >= NEARLY_ALWAYS:
        return ""
    return f"other seeds would give the same verdict in about {100 * chance:.0f} of 100 trials"


def count_by_verdict(verdicts: list[Verdict]) -> dict[str, int]:
    """How many claims have each verdict, without zeros."""
    counts = {name: sum(v.verdict == name for v in verdicts) for name in COLOURS}
    return {name: count for name, count in counts.items() if count}


def print_summary(recipe: Recipe, verdicts: list[Verdict], folder: Path, notes: Sequence[str] = ()) -> None:
    """One line per claim, the counts, `notes` that must not be missed, and where the report is: no more
    lines than the screen has."""
    width, height = shutil.get_terminal_size((80, 24))
    width = max(width, 40)
    console = Console(highlight=False, width=width)
    report = f"report: {_shown(folder / 'report.html')}"
    counts = (
        " · ".join(f"{count} {name}" for name, count in count_by_verdict(verdicts).items()) or "no claims"
    )
    last = [line for words in (counts, *notes) for line in textwrap.wrap(words, width)]
    below = len(last) + math.ceil(len(report) / width)  # neither is ever cut
    room = max(height - 1 - 2 - below, 1)  # a line for the prompt, two for title and headings
    reasons = [f"{v.claim.id}: {v.verdict}: {v.reason}" for v in verdicts if v.verdict in ("void", "missing")]
    kept = _fitting(verdicts, room)
    console.print(Text(recipe.title, style="bold"), no_wrap=True, overflow="ellipsis", crop=True)
    console.print(_table(kept, width))
    left = len(verdicts) - len(kept)
    for reason in reasons[: max(room - len(kept) - bool(left), 0)]:
        console.print(reason, markup=False, no_wrap=True, overflow="ellipsis")
    if left:
        rest = [v for v in verdicts if v not in kept]
        named = ", ".join(f"{count} {name}" for name, count in count_by_verdict(rest).items())
        console.print(Text(f"… and {left} more claims: {named}"), no_wrap=True, overflow="ellipsis")
    console.print(Text("\n".join(last)))
    console.print(report, markup=False, soft_wrap=True)


def _table(verdicts: list[Verdict], width: int) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("claim", no_wrap=True, overflow="ellipsis", min_width=8)
    table.add_column("verdict", no_wrap=True, min_width=9)
    table.add_column("estimate", no_wrap=True, min_width=9)
    table.add_column("interval", no_wrap=True, overflow="ellipsis")
    if width >= 70:
        table.add_column("predicted", no_wrap=True, overflow="ellipsis", max_width=18)
    for v in verdicts:
        estimate = "" if v.interval is None else number(v.interval.estimate)
        words = [_middle_cut(v.claim.id, 30), v.verdict, estimate, interval_text(v), str(v.claim.predicts)]
        cells = [Text(word) for word in words]
        cells[1].stylize(COLOURS[v.verdict])
        table.add_row(*cells[: len(table.columns)])
    return table


def _fitting(verdicts: list[Verdict], room: int) -> list[Verdict]:
    """The claims that there is room for, in their order."""
    if len(verdicts) <= room:
        return verdicts
    kept = list(verdicts)
    for name in LEAVE_OUT_FIRST:
        for v in [v for v in reversed(verdicts) if v.verdict == name]:
            if len(kept) < room:  # one line tells of the others
                return kept
            kept.remove(v)
    return kept


def _middle_cut(text: str, most: int) -> str:
    """Names of claims differ at both ends."""
    half = (most - 1) // 2
    return text if len(text) <= most else f"{text[:half]}…{text[-half:]}"


def _shown(path: Path) -> str:
    """The shorter of the path from here and the whole path."""
    try:
        return min(os.path.relpath(path), str(path), key=len)
    except ValueError:
        return str(path)
