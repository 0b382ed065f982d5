"""What a trial had fixed before it ran, and every change of that since.

The trial of a folder (arms, grid, seeds, training, measures, claims and the code) is hashed into run.json
before its first step. Another trial in the same folder is run only with a new entry in the list of
registrations: when, which hash, what changed in words, and whether results had been seen. Earlier entries are
never removed, earlier tables and verdicts are kept aside.
A folder of its own name, runs/NAME-HASH, begins with the entries of its siblings: the same recipe, changed.
"""

from __future__ import annotations

import glob
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flattrain.lab.cell import code_digest
from flattrain.lab.recipe import Recipe
from flattrain.lab.run_folder import PAGE, RECORD, REPORT, TABLE, VERDICTS
from flattrain.ranges import Refused

NOT_THE_TRIAL = (
    "title", "question", "paper", "notes", "minutes", "figures", "presets", "preset", "jobs", "out",
    "store", "execute", "tracking", "dry_run", "data",
)  # fmt: skip

Entry = dict[str, Any]


def registered(folder: Path, recipe: Recipe, siblings: bool) -> list[Entry]:
    """The folder's registrations with this trial as the last; written by whoever opens the record."""
    record = known(folder / RECORD)
    entries = list(record.get("registrations", []))
    if not record and siblings:
        record, entries = _before(folder, recipe.name)
    if entries and entries[-1]["key"] == recipe.key:
        return entries
    now = datetime.now(UTC).isoformat(timespec="seconds")
    entry: Entry = {"key": recipe.key, "time": now, "code": code_digest(), "folder": folder.name}
    if record:
        changed = changes(trial(record["recipe"]), trial(recipe.raw))
        if entries and entries[-1]["code"] != entry["code"]:
            changed.append("the code that measures")
        seen = any(_has_results(folder.parent / e["folder"], e["key"]) for e in entries)
        entry |= {"changed": changed or ["the name of the recipe"], "results_seen": seen}
    return [*entries, entry]


def known(path: Path) -> dict[str, Any]:
    """The record of a folder, empty where there is none; a damaged one is refused, as it holds the past."""
    if not path.exists():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        first = {"key": record["key"], "time": record["started"], "code": "", "folder": path.parent.name}
        for entry in record.setdefault("registrations", [first]):
            entry["key"], entry["time"], entry["code"], entry["folder"]
        record["recipe"]["claims"], record["name"]
        return dict(record)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise Refused(
            f"{path}: not readable, so what this folder has registered is not known; "
            "choose another out=FOLDER, or restore the file"
        ) from None


def keep_earlier(folder: Path, key: str) -> None:
    """Move the table and the verdicts of the trial `key` aside, before another one takes their place."""
    for name in (TABLE, VERDICTS, REPORT, PAGE):
        if (folder / name).exists():
            aside = folder / "earlier" / key
            aside.mkdir(parents=True, exist_ok=True)
            (folder / name).replace(aside / name)


def said(record: dict[str, Any]) -> str:
    """One line about every change after the first registration; empty where there was none."""
    parts = [
        f"{'after' if entry['results_seen'] else 'before'} results were seen "
        f"({entry['time'][:16].replace('T', ' ')}): {'; '.join(entry['changed'])}"
        for entry in record.get("registrations", [])
        if "changed" in entry
    ]
    return f"The trial was changed {' — and '.join(parts)}." if parts else ""


def trial(raw: dict[str, Any]) -> dict[str, Any]:
    """The keys of a recipe that make the trial."""
    return {k: v for k, v in raw.items() if k not in NOT_THE_TRIAL}


def changes(before: Any, after: Any, path: str = "") -> list[str]:
    """What differs, in words: added, removed, or from one value to another."""
    if not (isinstance(before, dict) and isinstance(after, dict)):
        return [] if before == after else [f"{path} {_short(before)} → {_short(after)}"]
    out = []
    for key in dict.fromkeys([*before, *after]):
        where = f"{path}.{key}" if path else str(key)
        if key not in after:
            out.append(f"{where} removed")
        elif key not in before:
            out.append(f"{where} added")
        else:
            out += changes(before[key], after[key], where)
    return out


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "…"


def _has_results(folder: Path, key: str) -> bool:
    record = folder / RECORD
    if (folder / "earlier" / key / TABLE).exists():
        return True
    try:
        return (folder / TABLE).exists() and json.loads(record.read_text(encoding="utf-8"))["key"] == key
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _before(folder: Path, name: str) -> tuple[dict[str, Any], list[Entry]]:
    """The latest of the folders of the same recipe, and the registrations of them all, by time."""
    found: dict[tuple[str, str], Entry] = {}
    latest: tuple[str, dict[str, Any]] = ("", {})
    for path in folder.parent.glob(f"{glob.escape(name)}-????????/{RECORD}"):
        try:
            record = known(path)
        except Refused:
            continue
        if record["name"] != name:
            continue
        entries = record["registrations"]
        found |= {(e["time"], e["key"]): e for e in entries}
        latest = max(latest, (entries[-1]["time"], record), key=lambda pair: pair[0])
    return latest[1], [found[k] for k in sorted(found)]
