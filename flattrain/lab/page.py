"""A run as a Markdown page that reads like a short paper: report.md beside report.html, or in documentation.

The question, what was found, the method in some lines, the verdicts with their intervals, the figures, what
would change the verdicts, and the command. Everything is taken from the recipe and the table: nothing is
written by hand.
"""

from __future__ import annotations

import gzip
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from flattrain.lab import tuning_table
from flattrain.lab.provenance import registrations
from flattrain.lab.recipe import Recipe
from flattrain.lab.registration import said
from flattrain.lab.run_folder import FIGURES, PAGE, TABLE, read_run
from flattrain.lab.summary import ANSWERS, RULES, count_by_verdict, interval_text, near_its_bound, number
from flattrain.lab.verdicts import Verdict
from flattrain.ranges import Refused
from flattrain.training.atomic import write_atomically

LARGEST = 300_000  # bytes of a table that is kept beside its page, packed if need be
INDEX = "index.md"
INDEX_HEAD = (
    "# Claims tested so far",
    "",
    "Every page comes from a run of its recipe. Thresholds and seeds were fixed before the run; what was",
    "changed later is said on the page.",
    "",
    "| recipe | question | verdicts |",
    "|---|---|---|",
)
_COUNTS = re.compile(r"seeds?\. (\d.*)\.$")
SHOWN = 14  # arms of a recipe that are described one by one


class Kept(NamedTuple):
    """A file that is kept beside a page."""

    name: str
    content: bytes


def write_page(
    path: Path, recipe: Recipe, record: dict[str, Any], verdicts: list[Verdict], figures: dict[str, str]
) -> None:
    """Write the page; `figures` are the names of the files in `figures/`, with what each shows."""
    counts = ", ".join(f"{count} {name}" for name, count in count_by_verdict(verdicts).items())
    seen = [f"![{_plain(title)}]({FIGURES}/{name})" for name, title in figures.items()]
    lines = [
        f"# {recipe.title}",
        "",
        recipe.question,
        "",
        f"*{recipe.paper}.* {recipe.seeds} seeds. {counts.capitalize()}.",
        "",
        "## What was found",
        "",
        *(f"- **{ANSWERS[v.verdict]}** {_plain(_found(v))}" for v in verdicts),
        "",
        "## Method",
        "",
        *([_plain(recipe.notes).replace("\n", "\n\n"), ""] if recipe.notes else []),
        *(f"- {line}" for line in _method(recipe)),
        "",
        "## Verdicts",
        "",
        "| claim | verdict | estimate | interval | predicted | refuted if | source |",
        "|---|---|---|---|---|---|---|",
        *map(_row, verdicts),
        "",
        RULES,
        *tuning_table.as_markdown(record),
        *(["", "## Figures", "", *"\n\n".join(seen).split("\n")] if seen else []),
        *_changes(verdicts),
        "",
        "## Run it",
        "",
        f"```\n{record['command']}\n```",
        "",
        _origin(record),
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def page_command(words: list[str]) -> int:
    """`page RUN_DIR FOLDER`: the page of a finished run, with its figures and, when small, its table."""
    if len(words) != 2:
        raise Refused(
            "page takes a run folder and a folder for its page: python -m flattrain page RUN_DIR docs"
        )
    run, folder = map(Path, words)
    found = read_run(run)
    name = str(found.record["name"])
    if not (run / PAGE).is_file():
        raise Refused(f"{run}: no {PAGE} there; run the recipe, or: python -m flattrain report {run}")
    beside = folder / name
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    for figure in sorted((run / FIGURES).glob("*.png")):
        shutil.copyfile(figure, beside / figure.name)
    text = (run / PAGE).read_text(encoding="utf-8").replace(f"]({FIGURES}/", f"]({name}/")
    command = str(found.record.get("command", ""))
    text = text.replace(f"```\n{command}\n", f"```\n{_anywhere(command)}\n")
    table = _small_enough((run / TABLE).read_bytes())
    if table:
        (beside / table.name).write_bytes(table.content)
        text += f"\n[Every number]({name}/{table.name}).\n"
    write_atomically(folder / f"{name}.md", text.encode())
    write_atomically(folder / INDEX, _index(folder).encode())
    print(folder / f"{name}.md")
    return 0


def _small_enough(content: bytes) -> Kept | None:
    """The table as it is, or packed, or not at all."""
    if len(content) <= LARGEST:
        return Kept(TABLE, content)
    packed = gzip.compress(content, mtime=0)  # without the time, so that the same table is the same file
    return Kept(f"{TABLE}.gz", packed) if len(packed) <= LARGEST else None


def _index(folder: Path) -> str:
    """A table of the pages in the folder: title and counts, which stand at fixed places of a page."""
    rows = []
    for page in sorted(folder.glob("*.md")):
        lines = page.read_text(encoding="utf-8").split("\n")
        counts = _COUNTS.search(lines[4]) if len(lines) > 4 else None
        if counts and page.name != INDEX:
            rows.append(f"| [{page.stem}]({page.name}) | {_plain(lines[0][2:])} | {counts[1]} |")
    return "\n".join([*INDEX_HEAD, *rows, ""])


def _anywhere(command: str) -> str:
    """The command without where it ran and where its files went, which change no number."""
    places = tuple(f"{key}=" for key in ("out", "store", "jobs", "data.root", "tracking", "execute"))
    return " ".join(word for word in command.split() if not word.startswith(places))


def _found(v: Verdict) -> str:
    """The claim with what was estimated."""
    if v.interval is None:
        return v.claim.says
    return f"{v.claim.says.rstrip('.')}: {number(v.interval.estimate)}, {interval_text(v)}."


def _row(v: Verdict) -> str:
    cells = (
        f"**{v.claim.id}**",
        v.verdict,
        "" if v.interval is None else number(v.interval.estimate),
        f"{interval_text(v)}, {100 * v.as_json()['level']:g} %" if v.interval else "",
        v.claim.predicts,
        v.claim.refuted_if or f"not {v.claim.predicts}",
        v.claim.source,
    )
    return "| " + " | ".join(_plain(str(c)) for c in cells) + " |"


def _changes(verdicts: list[Verdict]) -> Iterable[str]:
    """What would settle what is open, and which of the firm ones other seeds may leave open."""
    yield from ("", "## What would change the verdicts", "")
    near = {v.claim.id: near_its_bound(v) for v in verdicts}
    for v in verdicts:
        if v.reason:
            yield f"- **{v.claim.id}** is {v.verdict}: {_plain(v.reason)}."
        elif near[v.claim.id]:
            yield f"- **{v.claim.id}** is {v.verdict}, near its bound: {near[v.claim.id]}."
    far = sum(not (v.reason or near[v.claim.id]) for v in verdicts)
    if far:
        which = f"All {far}" if far == len(verdicts) else f"All others ({far})"
        yield f"- {which} are far from their bounds: other seeds would say the same, another setting may not."


def _method(recipe: Recipe) -> Iterable[str]:
    raw = recipe.raw
    yield f"Data: {_words(raw['problem'].get('dataset'))}. Loss: {_words(raw['problem'].get('loss'))}."
    if raw.get("model"):
        yield f"Model: {_words(raw['model'])}."
    train = {k: v for k, v in raw["train"].items() if v is not None and k not in ("milestones", "spacing")}
    yield f"Training: {_words(train)}. Measured at {raw['train']['milestones']} milestones."
    yield (
        f"Seeds: {raw['first_seed']} to {raw['first_seed'] + recipe.seeds - 1}. A seed sets data, start and "
        "order, and is the unit of every interval."
    )
    for axis, entry in raw["grid"].items():
        yield f"Grid: {axis} ({_words(entry['key'])}) over {', '.join(map(str, entry['values']))}."
    arms = dict(raw["arms"])
    for arm, changes in list(arms.items())[:SHOWN]:
        yield f"Arm `{arm}`: {_words(changes) if changes else 'as above'}."
    if len(arms) > SHOWN:
        yield f"{len(arms) - SHOWN} more arms: {', '.join(f'`{a}`' for a in list(arms)[SHOWN:])}."
    for spec in recipe.derived:
        yield f"`{spec.name}`: {spec.definition}."


def _words(value: Any) -> str:
    """A table of settings in a line."""
    if isinstance(value, dict):
        return ", ".join(k if v == {} else f"{k} {_inner(v)}" for k, v in value.items())
    if isinstance(value, list):
        return "[" + ", ".join(map(_words, value)) + "]"
    return "none" if value is None else _plain(str(value))


def _inner(value: Any) -> str:
    return f"({_words(value)})" if isinstance(value, dict) else _words(value)


def _origin(record: dict[str, Any]) -> str:
    found = registrations(record)
    when = f" First registered {found[0].get('time', '')}." if found else ""
    versions = ", ".join(f"{k} {v}" for k, v in sorted(record.get("versions", {}).items()))
    return (
        f"Trial {record['key']}, commit {str(record.get('commit') or 'unknown')[:12]}.{when} "
        f"{record.get('core_seconds', 'unknown')} core-seconds. {versions}. {said(record)}".rstrip()
    )


def _plain(text: str) -> str:
    return text.replace("|", "\\|")
