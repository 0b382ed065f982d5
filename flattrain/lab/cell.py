"""What is run: a cell is one arm at one grid point, as plain JSON: to be hashed, stored and sent about."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from flattrain.lab.spec import EVALUATIONS
from flattrain.lab.tune_spec import TuneSpec


@dataclass(frozen=True)
class Cell:
    """One arm at one grid point, for all seeds."""

    arm: str
    point: dict[str, Any]
    spec: dict[str, Any]
    tries: str = ""  # of a trial: the setting, in words

    @property
    def label(self) -> str:
        parts = [self.arm, *(f"{k}={v}" for k, v in self.point.items()), self.tries]
        return " ".join(part for part in parts if part)

    @property
    def key(self) -> str:
        # Steps that follow from a budget are no part of the identity: it is known before they are.
        train = self.spec["train"]
        asked = train | {"steps": None} if train[EVALUATIONS] else train
        return digest([self.arm, self.point, self.spec | {"train": asked}, code_digest()])

    @property
    def steps(self) -> int:
        """How many it trains; an upper bound where `lab.budget` has not been asked."""
        train = self.spec["train"]
        return int(train[EVALUATIONS] if train["steps"] is None else train["steps"])


@dataclass(frozen=True)
class Tuning:
    """How the settings of one arm at one grid point are chosen; see `lab.tune_spec` and `lab.tuning`.

    trials, finals : for each candidate its cell on the trials' seeds, and the arm's cell if it wins.
    """

    spec: TuneSpec
    trials: tuple[Cell, ...]
    finals: tuple[Cell, ...]

    @property
    def of(self) -> tuple[str, str]:
        """The arm and the point, to be looked up by."""
        return place(self.finals[0])

    @property
    def key(self) -> str:
        return digest([self.spec.by, [c.key for c in self.trials], [c.key for c in self.finals]])


def place(cell: Cell) -> tuple[str, str]:
    """The arm and the grid point of a cell."""
    return cell.arm, json.dumps(cell.point, sort_keys=True)


def digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@lru_cache(maxsize=1)
def code_digest() -> str:
    """A hash of the code that produces numbers, so that old cells are not taken for new ones."""
    package = Path(__file__).resolve().parent.parent
    parts = [package / p for p in ("core", "problems", "measures", "rules", "training")]
    own = [Path(__file__).with_name(name) for name in ("run.py", "measuring.py", "device.py")]
    files = sorted(f for p in parts for f in p.rglob("*.py"))
    return digest([f.read_text(encoding="utf-8") for f in [*files, *own]])
