"""Where a report comes from: the command, the code, the seeds, the recipe, and what was changed."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from flattrain.lab.markup import Markup, folded, preformatted, table, tag


def registrations(record: dict[str, Any]) -> list[dict[str, Any]]:
    """What was registered before the runs: time, hash and what changed against the one before."""
    found = record.get("registrations")
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []


def changes(entry: dict[str, Any]) -> list[str]:
    """The lines that say what a registration changed."""
    found = entry.get("changed") or []
    return [str(line) for line in found] if isinstance(found, list) else [str(found)]


def warnings(record: dict[str, Any]) -> Iterable[Markup]:
    """A box that cannot be overlooked, where the trial was changed after it was first registered."""
    found = registrations(record)
    if len(found) < 2:
        return
    said = [tag("li", f"{entry.get('time', '')}: {_said(entry)}") for entry in found[1:]]
    yield tag(
        "div",
        tag("strong", "The trial was changed after it had been registered. "),
        f"It was first registered {found[0].get('time', 'before it started')}; what was changed since:",
        tag("ul", *said),
        class_="warning",
        role="note",
    )


def diverged(record: dict[str, Any]) -> Iterable[Markup]:
    """The runs that ended because their loss was no longer finite, folded."""
    found = record.get("diverged")
    lost = [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []
    if not lost:
        return
    keys = list(dict.fromkeys(key for entry in lost for key in entry))
    rows = [[str(entry.get(key, "")) for key in keys] for entry in lost]
    runs = f"{len(lost)} run{'s' if len(lost) > 1 else ''} diverged"
    yield folded(runs, table("Runs that ended before their last step", keys, rows))


def _said(entry: dict[str, Any]) -> str:
    what = "; ".join(changes(entry)) or "what changed is not recorded"
    seen: dict[bool | None, str] = {
        True: ", after results had been seen",
        False: ", before any result was seen",
    }
    return what + seen.get(entry.get("results_seen"), "")


def provenance(record: dict[str, Any]) -> Iterable[Markup]:
    """The section on how to get the same numbers again."""
    recipe = record["recipe"]
    first, count = int(recipe.get("first_seed") or 0), int(recipe.get("seeds") or 1)
    seeds = f"{first}" if count == 1 else f"{first} to {first + count - 1}"
    facts = [
        ("seeds", seeds),
        ("commit", record.get("commit") or "unknown"),
        ("trial", record.get("key", "")),
        ("started", record.get("started", "")),
        ("core-seconds", record.get("core_seconds", "unknown")),
        *sorted(record.get("versions", {}).items()),
    ]
    yield tag("h2", "Reproduce")
    yield preformatted(str(record.get("command", "")), "The command that reproduces this report")
    yield folded("Seeds, code and versions", table("What ran", ["what", "value"], facts))
    found = registrations(record)
    if found:
        rows = [(e.get("time", ""), e.get("key") or e.get("hash", ""), "; ".join(changes(e))) for e in found]
        heads = ["time", "hash", "changed"]
        yield folded("Registrations", table("What was fixed before the runs", heads, rows))
    paths = list(record.get("backends", {}).items())
    if paths:
        yield folded("Which code trained each arm", table("Code paths", ["arm", "code"], paths))
    shown = json.dumps(recipe, indent=2, ensure_ascii=False)
    yield folded("The recipe", preformatted(shown, "The recipe"))
