"""What lies in a run's folder, and what a finished run says there of itself: its record and its verdicts.

Nothing is judged again here, so a run of an older version reads as well as one of today.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from flattrain.ranges import Refused

RECORD, TABLE, VERDICTS = "run.json", "results.csv", "verdicts.json"
REPORT, PAGE, FIGURES = "report.html", "report.md", "figures"


class Judged(NamedTuple):
    """One claim in one run. `low` and `high` are infinite where the interval is open."""

    verdict: str
    estimate: float | None
    low: float
    high: float
    n: int
    says: str
    terms: str  # what was tested, predicted and refuting, as text: equal terms can be compared


class RunFolder(NamedTuple):
    path: Path
    record: dict[str, Any]
    claims: dict[str, Judged]


def read_run(folder: Path) -> RunFolder:
    """The run in a folder; one that cannot be read is refused in a line."""
    if not folder.is_dir():
        raise Refused(f"{folder}: no such folder; give folders under runs/")
    record = _table(folder / RECORD, "not a run folder")
    if not isinstance(record.get("recipe"), dict):
        raise Refused(f"{folder}: not a run folder ({RECORD} has no recipe)")
    found = _table(folder / VERDICTS, "no readable verdicts; python -m flattrain report makes them again")
    claims = found.get("claims")
    if not isinstance(claims, dict):
        raise Refused(f"{folder / VERDICTS}: has no claims; python -m flattrain report makes it again")
    try:
        return RunFolder(folder, record, {str(k): _judged(v) for k, v in claims.items()})
    except (KeyError, TypeError, ValueError, AttributeError):
        raise Refused(f"{folder / VERDICTS}: is damaged; python -m flattrain report makes it again") from None


def _table(path: Path, otherwise: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise Refused(f"{path.parent}: {otherwise} (no readable {path.name})")
    return found


def _judged(entry: dict[str, Any]) -> Judged:
    low, high = entry["interval"] or (None, None)
    estimate = entry["estimate"]
    terms = {key: entry.get(key) for key in ("test", "predicts", "refuted_if")}
    return Judged(
        str(entry["verdict"]),
        None if estimate is None else float(estimate),
        -math.inf if low is None else float(low),
        math.inf if high is None else float(high),
        int(entry.get("n") or 0),
        str(entry.get("says", "")),
        json.dumps(terms, sort_keys=True),
    )
