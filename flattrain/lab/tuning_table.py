"""What was tuned, as tables for the report and the page: from the record of a run alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from flattrain.lab.markup import Markup, folded, table, tag

HEAD = ("arm", "chosen", "score", "runs", "remarks")


def rows(record: dict[str, Any]) -> list[tuple[str, ...]]:
    """One row per arm and grid point that was tuned, in the order of HEAD."""
    return [_row(entry) for entry in record.get("tuning") or [] if entry.get("chosen") is not None]


def section(record: dict[str, Any]) -> Iterable[Markup]:
    """The section of the report, with every trial folded away; nothing where nothing was tuned."""
    found = rows(record)
    if not found:
        return
    every = [
        (_name(entry), setting_text(trial["setting"]), _score(trial))
        for entry in record["tuning"]
        for trial in entry["trials"]
    ]
    yield tag("h2", "Settings that were tuned")
    yield tag("p", said(record), class_="small")
    yield table("What was chosen for each arm", HEAD, found)
    yield folded("Every trial", table("What was tried", ("arm", "setting", "score"), every))


def as_markdown(record: dict[str, Any]) -> list[str]:
    """The same for the page, without the single trials, as lines."""
    found = rows(record)
    if not found:
        return []
    lines = ["", "## Settings that were tuned", "", said(record), "", _line(HEAD), _line(["---"] * len(HEAD))]
    return [*lines, *map(_line, found)]


def said(record: dict[str, Any]) -> str:
    """How it was chosen, in a sentence."""
    by = sorted({entry["by"].replace("_", " ") for entry in record["tuning"]})
    seeds = sorted({seed for entry in record["tuning"] for seed in entry["seeds"]})
    return (
        f"Chosen by the smallest mean {' or '.join(by)} on validation examples, on seeds {_span(seeds)}, "
        "none of which is a seed of the verdicts; test examples were not looked at. Of equal ones the first "
        "counts."
    )


def setting_text(setting: dict[str, Any]) -> str:
    """ "train.lr = 0.1, rule.sam.rho = 0.05"."""
    return ", ".join(f"{path} = {value}" for path, value in setting.items())


def _row(entry: dict[str, Any]) -> tuple[str, ...]:
    trials = entry["trials"]
    best = next(t for t in trials if t["setting"] == entry["chosen"])
    remarks = []
    if entry["diverged"]:
        remarks.append(f"{entry['diverged']} of {len(trials)} trials diverged")
    if entry["ties"]:
        remarks.append(f"{entry['ties']} more with the same score")
    if entry["at_ends"]:
        remarks.append(f"at the end of what was tried: {', '.join(entry['at_ends'])}")
    runs = f"{len(trials)} × {len(entry['seeds'])} seeds"
    return _name(entry), setting_text(entry["chosen"]), _score(best), runs, "; ".join(remarks)


def _name(entry: dict[str, Any]) -> str:
    return " ".join([entry["arm"], *(f"{k}={v}" for k, v in entry["point"].items())])


def _score(trial: dict[str, Any]) -> str:
    return "diverged" if trial["mean"] is None else f"{trial['mean']:.4g}"


def _span(seeds: list[int]) -> str:
    whole = seeds == list(range(seeds[0], seeds[-1] + 1)) and len(seeds) > 1
    return f"{seeds[0]} to {seeds[-1]}" if whole else ", ".join(map(str, seeds))


def _line(cells: Any) -> str:
    return "| " + " | ".join(str(c).replace("|", "\\|") for c in cells) + " |"
