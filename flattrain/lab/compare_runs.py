"""Several runs side by side: which verdicts changed, whether intervals overlap, what was different."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from flattrain.lab.registration import trial
from flattrain.lab.run_folder import Judged, RunFolder, read_run
from flattrain.ranges import Refused


class Compared(NamedTuple):
    """One claim over the runs; None where a run does not have it."""

    claim: str
    says: str
    runs: tuple[Judged | None, ...]

    @property
    def changed(self) -> bool:
        """Whether the runs that have the claim differ in their verdict."""
        return len({j.verdict for j in self.runs if j is not None}) > 1

    @property
    def overlap(self) -> bool | None:
        """Whether every two intervals have a point in common; None with fewer than two of them."""
        found = [j for j in self.runs if j is not None and j.estimate is not None]
        if len(found) < 2:
            return None
        return all(max(a.low, b.low) <= min(a.high, b.high) for a, b in combinations(found, 2))

    @property
    def same_terms(self) -> bool:
        """Whether all test and predict the same thing."""
        return len({j.terms for j in self.runs if j is not None}) <= 1

    @property
    def remark(self) -> str:
        """What is to be noticed, in words."""
        said = ["verdict changed"] if self.changed else []
        if self.overlap is False:
            said.append("intervals apart")
        if not self.same_terms:
            said.append("not the same test")
        if any(j is None for j in self.runs):
            said.append("not in every run")
        return ", ".join(said)


class Comparison(NamedTuple):
    labels: tuple[str, ...]
    runs: tuple[RunFolder, ...]
    claims: tuple[Compared, ...]
    differences: dict[str, tuple[str, ...]]  # setting -> its value in each run


def compare(folders: Sequence[Path]) -> Comparison:
    """Read the run folders and set them side by side."""
    if len(folders) < 2:
        raise Refused("compare takes two or more run folders: python -m flattrain compare RUN RUN")
    places = [folder.resolve() for folder in folders]
    for folder, place in zip(folders, places, strict=True):
        if places.count(place) > 1:
            raise Refused(f"{folder} is given twice")
    runs = tuple(read_run(folder) for folder in folders)
    names = dict.fromkeys(name for run in runs for name in run.claims)
    claims = tuple(_compared(name, runs) for name in names)
    return Comparison(_labels(places), runs, claims, _differences(runs))


def _labels(places: list[Path]) -> tuple[str, ...]:
    """The shortest ends of the paths that tell them apart."""
    for depth in range(1, max(len(p.parts) for p in places) + 1):
        ends = tuple("/".join(p.parts[-depth:]) for p in places)
        if len(set(ends)) == len(ends):
            return ends
    return tuple(map(str, places))


def _compared(name: str, runs: tuple[RunFolder, ...]) -> Compared:
    found = tuple(run.claims.get(name) for run in runs)
    return Compared(name, next(j.says for j in found if j is not None), found)


def _differences(runs: tuple[RunFolder, ...]) -> dict[str, tuple[str, ...]]:
    """Every setting, version and commit that is not the same in all runs; an arm or claim that is not in
    all of them is one line."""
    trials = [_trial(run.record) for run in runs]
    for part in ("arms", "claims", "grid", "versions"):
        tables = [t[part] if isinstance(t.get(part), dict) else {} for t in trials]
        common = set.intersection(*(set(table) for table in tables))
        for one, table in zip(trials, tables, strict=True):
            one[part] = {k: v if k in common else "there" for k, v in table.items()}
    flat = [_flat(one) for one in trials]
    keys = dict.fromkeys(key for settings in flat for key in settings)
    rows = {key: tuple(settings.get(key, "—") for settings in flat) for key in keys}
    return {key: values for key, values in rows.items() if len(set(values)) > 1}


def _trial(record: dict[str, Any]) -> dict[str, Any]:
    recipe = trial(record["recipe"])
    first = {"recipe": record.get("name"), "commit": record.get("commit"), "versions": record.get("versions")}
    return first | recipe


def _flat(value: Any, path: str = "") -> dict[str, str]:
    """Dotted path -> value as JSON; tables without entries count as absent, and so does null."""
    if isinstance(value, dict):
        out: dict[str, str] = {}
        for key, inner in value.items():
            out |= _flat(inner, f"{path}.{key}" if path else str(key))
        return out
    if value is None:
        return {}
    return {path: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}
