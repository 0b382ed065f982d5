"""What an arm tunes, checked: which settings it tries, by which quantity, with how many trials.

tune:
  over: {train.lr: [0.01, 0.03, 0.1], rule.sam.rho: [0.05, 0.1]}     settings of the arm, by dotted path
  by: validation_error          the smallest mean over the trials' seeds wins; default
  seeds: 2                      of a trial; they are not those of the verdict
  first_seed: 1000000           default
  budget: 4                     trials per arm: so many points of the grid, drawn; default: all of them

The candidates are a function of the recipe alone and are hashed into the trial before it runs. The points
drawn are those whose SHA-256 with the recipe's name and the grid is smallest, so arms with the same grid try
the same points, on every machine. Every arm that is tuned gets the same number of runs, trials × seeds,
unless each of them says its own budget.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from flattrain.lab.spec import MOST
from flattrain.ranges import Refused, refusal, suggest

KEYS = {"over": "", "by": "str", "seeds": "Count", "first_seed": "Steps", "budget": "Count | None"}
BY = ("validation_error", "validation_loss")
FIRST_SEED = 1_000_000
MOST_TRIALS = 500
FIXED = ("problem", "train.steps", "train.epochs", "train.gradient_evaluations", "train.milestones")

Setting = dict[str, Any]  # dotted path -> value


@dataclass(frozen=True)
class TuneSpec:
    """`candidates` in the order of the grid, the last path fastest."""

    by: str
    seeds: int
    first_seed: int
    candidates: tuple[Setting, ...]

    @property
    def runs(self) -> int:
        return len(self.candidates) * self.seeds


def read_tune(table: Any, where: str, name: str, keys: Mapping[str, str], verdict: range) -> TuneSpec | None:
    """The tuning of an arm; None where there is none.

    name    : of the recipe, for the draw.
    keys    : dotted path -> the grid axis that sets it.
    verdict : the seeds of the verdict.
    """
    if table is None:
        return None
    if not isinstance(table, dict):
        raise Refused(f"{where}: must be a table, got {table!r}")
    for key, value in table.items():
        if key not in KEYS:
            raise Refused(f"{where}: unknown key {key!r}{suggest(str(key), KEYS)}")
        if KEYS[key] and (problem := refusal(KEYS[key], value)):
            raise Refused(f"{where}.{key} {problem}")
    by, seeds = table.get("by", BY[0]), int(table.get("seeds", 2))
    if by not in BY:
        raise Refused(
            f"{where}.by must be one of {', '.join(BY)}, got {by!r}: what is chosen is chosen on validation "
            "examples"
        )
    if seeds > MOST:
        raise Refused(f"{where}.seeds must be at most {MOST:,}, got {seeds}")
    first = int(table.get("first_seed", FIRST_SEED))
    shared = range(max(first, verdict.start), min(first + seeds, verdict.stop))
    if shared:
        raise Refused(f"{where}: seed {shared[0]} is one of the verdict's; give another {where}.first_seed")
    grid = _grid(table.get("over"), f"{where}.over", keys)
    size = math.prod(len(values) for values in grid.values())
    budget = table.get("budget") or size
    if size > MOST:
        raise Refused(f"{where}.over: {size} points are too many; at most {MOST}")
    if budget > size:
        raise Refused(
            f"{where}: over has {size} points, fewer than the budget of {budget} trials; add values, or give "
            "all arms a smaller budget"
        )
    if budget > MOST_TRIALS:
        raise Refused(f"{where}: {budget} trials are too many; give a budget of at most {MOST_TRIALS}")
    points = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    drawn = sorted(range(size), key=lambda k: _rank(name, grid, points[k]))[: int(budget)]
    return TuneSpec(by, seeds, first, tuple(points[k] for k in sorted(drawn)))


def need_equal(runs: Mapping[str, int], own: Iterable[str]) -> None:
    """Refuse arms that are tuned with unequal budgets, unless each says its own.

    runs : of the arms that are tuned.
    own  : the arms whose own table states a budget.
    """
    if len(set(runs.values())) < 2 or set(runs) <= set(own):
        return
    (most, high), (least, low) = (f(runs.items(), key=lambda item: item[1]) for f in (max, min))
    raise Refused(
        f"tune: arm {most} has {high} runs to be tuned with, arm {least} {low}; give tune.budget, so many "
        "trials for every arm, or each tuned arm a budget of its own"
    )


def _grid(over: Any, where: str, keys: Mapping[str, str]) -> dict[str, list[Any]]:
    if not isinstance(over, dict) or not over:
        raise Refused(f"{where}: give the settings to try, e.g. {{train.lr: [0.01, 0.1]}}, got {over!r}")
    for path, values in over.items():
        at = f"{where}.{path}"
        if not isinstance(path, str):
            raise Refused(f"{where}: a setting is named by its dotted path, got {path!r}")
        if any(path == fixed or path.startswith(f"{fixed}.") for fixed in FIXED):
            raise Refused(f"{at}: what is learnt and how long is the same for all trials; it cannot be tuned")
        if path in keys:
            raise Refused(f"{at}: {path} is the grid axis {keys[path]}; it cannot be tuned as well")
        if not isinstance(values, list) or not values:
            raise Refused(f"{at} must be a list of values, got {values!r}")
        for value in values:
            if not isinstance(value, str | int | float):
                raise Refused(f"{at}: a value is a number, a text or true/false, got {value!r}")
        if len(set(map(json.dumps, values))) < len(values):
            raise Refused(f"{at}: a value is given twice in {values!r}")
    return over


def _rank(name: str, grid: dict[str, list[Any]], point: Setting) -> str:
    return hashlib.sha256(json.dumps([name, grid, point], sort_keys=True).encode()).hexdigest()
