"""What curvature costs in training steps, by flattrain and by every other package that can do the same work.

    pip install -e '.[bench]' -c constraints.txt
    pip install --no-deps backpack-for-pytorch==1.7.1 nngeometry==0.4 \\
        laplace-torch==0.3 asdfghjkl==0.1a4 torchmetrics==1.9.0 lightning-utilities==0.15.3
    python -m benchmarks.curvature [--repeats 15] [--only KEY] [--memory | --memory-only] [--write]

The second line's packages ask for torchvision or another torch and run without. Packages that are missing
have a row that says so. `--only` takes the beginning of a group's key (`benchmarks.groups`); `--write` puts
the group's rows into docs/benchmarks.md and docs/benchmarks.json and keeps those of the others. All groups
take more than an hour on one core.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

import torch

from benchmarks import memory
from benchmarks.agreement import Deviation, deviations
from benchmarks.cases import Group, Method, plain, problem
from benchmarks.groups import chosen, missing
from benchmarks.page import Row, as_json, as_markdown, from_json
from benchmarks.timing import Ratio, interleave

DOCS = Path(__file__).parent.parent / "docs"
TABLE = DOCS / "benchmarks.json"


def measure(group: Group, repeats: int, with_memory: bool) -> list[Row]:
    why = {m.name: missing(m) or _trial(group, m) for m in group.methods}
    able = [m for m in group.methods if not why[m.name]]
    agreement = deviations(group, able)
    torch.manual_seed(0)
    works = {m.name: m.work(problem(group.network)) for m in able if m.work is not None}
    times = interleave(plain(group), {name: work.run for name, work in works.items()}, repeats)
    first = Row(group.key, group.network, f"plain {group.baseline}")
    _fill(first, times["plain"], 1)
    rows = [first]
    for method in group.methods:
        row = Row(group.key, group.network, method.name, remark=why[method.name] or method.remark)
        if method.name in works:
            work = works[method.name]
            _fill(row, times[method.name], work.units)
            row.columns = work.found(times[method.name].median / work.units) if work.found else {}
            _note(row, agreement.get(method.name))
        rows.append(row)
    for row in rows:
        row.rounds = repeats
    if with_memory:
        _add_memory(rows)
    return rows


def _add_memory(rows: list[Row]) -> None:
    """Of the methods that ran. Needs no quiet machine, unlike the times."""
    for k, row in enumerate(rows):
        if row.ratio is not None:
            row.megabytes = memory.measured(row.group, row.method if k else memory.PLAIN)


def _fill(row: Row, found: Ratio, units: int) -> None:
    row.ratio, row.quartiles = found.median / units, (found.low / units, found.high / units)
    row.milliseconds = found.milliseconds / units


def _trial(group: Group, method: Method) -> str:
    """How another package fails, or nothing; ours must not."""
    try:
        if method.needs and method.work is not None:
            method.work(problem(group.network)).run()
    except Exception as error:
        return f"fails: {type(error).__name__}"
    return ""


def _note(row: Row, found: Deviation | None) -> None:
    if found is not None:
        row.deviation, row.unit, row.agrees = found


def _known() -> list[Row]:
    return from_json(TABLE.read_text(encoding="utf-8")) if TABLE.exists() else []


def _write(group: Group, measured: list[Row]) -> None:
    """This group's rows into the page; those of the others stay."""
    rows = [row for row in _known() if row.group != group.key] + measured
    TABLE.write_text(as_json(rows), encoding="utf-8")
    (DOCS / "benchmarks.md").write_text(as_markdown(chosen(None), rows), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="What curvature costs, in plain training steps.")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--only", help="groups whose key begins with this")
    peak = parser.add_mutually_exclusive_group()
    peak.add_argument("--memory", action="store_true", help="peak memory too, each in a fresh process")
    peak.add_argument("--memory-only", action="store_true", help="peak memory, for the rows there are")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md and .json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    groups, rows = chosen(given.only), []
    for group in groups:
        print(f"{group.key} …", file=sys.stderr, flush=True)
        if given.memory_only:
            measured = [row for row in _known() if row.group == group.key]
            _add_memory(measured)
        else:
            measured = measure(group, given.repeats, given.memory)
        rows += measured
        if given.write:
            _write(group, measured)
    print(as_markdown(groups, rows))
    wrong = [f"{r.group}: {r.method}" for r in rows if r.agrees is False]
    if wrong:
        raise SystemExit(f"values disagree: {'; '.join(wrong)}")


if __name__ == "__main__":
    main()
