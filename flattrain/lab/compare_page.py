"""A comparison of runs for the terminal, and as a page of HTML, Markdown or JSON."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flattrain.lab.compare_runs import Comparison, compare
from flattrain.lab.markup import Cell, Markup, document, joined, preformatted, table, tag
from flattrain.lab.run_folder import Judged
from flattrain.lab.summary import COLOURS, number
from flattrain.ranges import Refused, suggest

MOST = 25  # differing settings on the screen; a page has them all


def compare_command(words: Sequence[str]) -> int:
    """compare RUN RUN... [out=FILE.html|.md|.json]"""
    outs = [word.removeprefix("out=") for word in words if word.startswith("out=")]
    if len(outs) > 1:
        raise Refused("out is given twice")
    for word in words:
        if word.startswith("-"):
            raise Refused(f"unknown option {word!r}; compare takes run folders and out=FILE")
    path = Path(outs[0]) if outs else None
    if path is not None and path.suffix not in WRITERS:
        raise Refused(
            f"out={path}: must end in {', '.join(WRITERS)}{suggest(path.suffix or '.html', WRITERS)}"
        )
    found = compare([Path(word) for word in words if not word.startswith("out=")])
    if path is not None:
        beside = path.with_name(path.name + ".tmp")
        beside.write_text(WRITERS[path.suffix](found), encoding="utf-8", errors="replace")
        beside.replace(path)
    print_comparison(found)
    if path is not None:
        print(f"written: {path}")
    return 0


def interval_words(judged: Judged | None) -> str:
    """estimate [low, high], or nothing."""
    if judged is None or judged.estimate is None:
        return ""
    return f"{number(judged.estimate)} [{number(judged.low)}, {number(judged.high)}]"


def conclusions(found: Comparison) -> list[str]:
    """What the comparison comes to, one sentence each."""
    total = len(found.claims)
    changed = [c.claim for c in found.claims if c.changed]
    apart = [c.claim for c in found.claims if c.overlap is False]
    other = [c.claim for c in found.claims if not c.same_terms]
    said = [f"{len(changed)} of {total} verdicts changed{_listed(changed)}."]
    said.append(f"Intervals that do not overlap: {', '.join(apart)}." if apart else "All intervals overlap.")
    if other:
        said.append(f"Not the same test in every run: {', '.join(other)}.")
    return said


def _listed(names: list[str]) -> str:
    return f": {', '.join(names)}" if names else ""


def print_comparison(found: Comparison) -> None:
    """Claims as rows, runs as columns, then what differs."""
    console = Console(highlight=False, width=max(shutil.get_terminal_size((80, 24)).columns, 40))
    letters = [chr(ord("A") + k) if k < 26 else f"#{k + 1}" for k in range(len(found.labels))]
    for letter, label in zip(letters, found.labels, strict=True):
        console.print(f"{letter}  {label}", markup=False)
    verdicts = Table(box=None, pad_edge=False)
    for heading in ("claim", *letters, ""):
        verdicts.add_column(heading, overflow="fold")
    for claim in found.claims:
        verdicts.add_row(claim.claim, *map(_screen_cell, claim.runs), claim.remark)
    console.print(verdicts)
    for sentence in conclusions(found):
        console.print(sentence, markup=False)
    settings = Table(box=None, pad_edge=False, title="What was different", title_justify="left")
    for heading in ("setting", *letters):
        settings.add_column(heading, overflow="fold")
    for key, values in list(found.differences.items())[:MOST]:
        settings.add_row(Text(key), *(Text(_short(value)) for value in values))
    console.print(settings if found.differences else "The settings are the same.")
    if len(found.differences) > MOST:
        console.print(f"… and {len(found.differences) - MOST} more; out=compare.html shows all")


def _screen_cell(judged: Judged | None) -> Text:
    if judged is None:
        return Text("—")
    return Text.assemble((judged.verdict, COLOURS.get(judged.verdict, "")), f"\n{interval_words(judged)}")


def _short(value: str) -> str:
    return value if len(value) <= 60 else f"{value[:59]}…"


def as_html(found: Comparison) -> str:
    """The comparison as a page of its own."""
    rows: list[list[Any]] = [
        [
            Cell(joined([tag("strong", c.claim), tag("small", c.says)], "<br>"), "says"),
            *(_page_cell(judged) for judged in c.runs),
            Cell(c.remark, "changed" if c.remark else ""),
        ]
        for c in found.claims
    ]
    settings = [[key, *map(_short, values)] for key, values in found.differences.items()]
    runs = [
        [label, run.record.get("started", ""), run.record.get("commit", ""), run.record.get("key", "")]
        for label, run in zip(found.labels, found.runs, strict=True)
    ]
    body = [
        tag("h1", _title(found)),
        *(tag("p", sentence) for sentence in conclusions(found)),
        table("Verdict, estimate and interval in each run", ["claim", *found.labels, "remark"], rows),
        tag("h2", "What was different"),
        table("Settings and versions that differ", ["setting", *found.labels], settings)
        if settings
        else tag("p", "The settings are the same."),
        tag("h2", "The runs"),
        table("Runs", ["run", "started", "commit", "trial"], runs),
        *(preformatted(str(run.record.get("command", "")), "Command of a run") for run in found.runs),
    ]
    return document(_title(found), body)


def _page_cell(judged: Judged | None) -> Cell:
    if judged is None:
        return Cell("—")
    badge = tag("span", judged.verdict, class_=f"verdict {judged.verdict}")
    numbers = tag("small", f"{interval_words(judged)}, n\u00a0=\u00a0{judged.n}") if judged.n else Markup("")
    return Cell(joined([badge, numbers], "<br>"))


def _title(found: Comparison) -> str:
    return f"{len(found.runs)} runs compared"


def as_markdown(found: Comparison) -> str:
    """The comparison for a page of documentation."""
    lines = [f"# {_title(found)}", "", *conclusions(found), ""]
    lines += _markdown_table(
        ["claim", *found.labels, "remark"],
        [
            [c.claim, *(f"{j.verdict} {interval_words(j)}" if j else "—" for j in c.runs), c.remark]
            for c in found.claims
        ],
    )
    if found.differences:
        rows = [[key, *map(_short, values)] for key, values in found.differences.items()]
        lines += ["", *_markdown_table(["setting", *found.labels], rows)]
    return "\n".join(lines) + "\n"


def _markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [
        "| " + " | ".join(" ".join(str(c).split()).replace("|", "\\|") for c in line) + " |" for line in lines
    ]


def as_json(found: Comparison) -> str:
    """The comparison for programs; null where a run does not have a claim, or an interval is open."""
    claims = {
        c.claim: {
            "runs": [None if j is None else _json_entry(j) for j in c.runs],
            "verdict_changed": c.changed,
            "intervals_overlap": c.overlap,
            "same_test": c.same_terms,
        }
        for c in found.claims
    }
    paths = [{"label": label, "path": str(r.path)} for label, r in zip(found.labels, found.runs, strict=True)]
    differences = {key: list(values) for key, values in found.differences.items()}
    return json.dumps({"runs": paths, "claims": claims, "differences": differences}, indent=2) + "\n"


def _json_entry(judged: Judged) -> dict[str, Any]:
    ends = [x if math.isfinite(x) else None for x in (judged.low, judged.high)]
    return {"verdict": judged.verdict, "estimate": judged.estimate, "interval": ends, "n": judged.n}


WRITERS: dict[str, Callable[[Comparison], str]] = {".html": as_html, ".md": as_markdown, ".json": as_json}
