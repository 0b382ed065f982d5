"""The verdicts as a Markdown page, for documentation: report.md beside report.html."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flattrain.lab import tuning_table
from flattrain.lab.recipe import Recipe
from flattrain.lab.registration import said
from flattrain.lab.summary import interval_text, number
from flattrain.lab.verdicts import Verdict


def write_page(path: Path, recipe: Recipe, record: dict[str, Any], verdicts: list[Verdict]) -> None:
    """Question, verdict table, and the command that reproduces it."""
    lines = [
        f"# {recipe.title}",
        "",
        recipe.question,
        "",
        f"{recipe.paper}. {recipe.seeds} seeds.",
        "",
        "| claim | verdict | estimate | interval | predicted | refuted if |",
        "|---|---|---|---|---|---|",
    ]
    for v in verdicts:
        estimate = "" if v.interval is None else number(v.interval.estimate)
        refuted = v.claim.refuted_if or f"not {v.claim.predicts}"
        cells = (
            f"**{v.claim.id}** {v.claim.says} *{v.claim.source}*",
            f"{v.verdict}{': ' + v.reason if v.reason else ''}",
            estimate,
            f"{interval_text(v)}, {100 * v.as_json()['level']:g} %" if v.interval else "",
            v.claim.predicts,
            refuted,
        )
        lines.append("| " + " | ".join(str(c).replace("|", "\\|") for c in cells) + " |")
    lines += tuning_table.as_markdown(record)
    lines += ["", f"```\n{record['command']}\n```", "", f"Trial {record['key']}. {said(record)}".rstrip()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
