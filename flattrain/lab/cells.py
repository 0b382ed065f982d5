"""What is run, stored and reused as one: a block of a cell's seeds, in a file named by its content.

The name is a hash of everything that makes the numbers: data, model, rule, training, measures, seeds, the
code and the versions of the libraries. The names of arms, titles, claims and figures are not in it, so they
can be changed, and seeds added, while every block that is still wanted is taken as it is.

Stacked seeds agree with each other's numbers to rounding only: the last bits of a seed can depend on how many
are stacked with it. So the blocks are fixed, SEEDS_TOGETHER to each from the first seed on, whatever has been
run before: a table is a function of its recipe.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from flattrain.lab.cell import Cell, code_digest, digest
from flattrain.lab.results import Row
from flattrain.training.atomic import write_atomically

SEEDS_TOGETHER = 8
RESULT = {"rows", "backend", "definitions", "diverged", "seconds"}
LIBRARIES = ("torch", "torchopt", "numba", "numpy", "scipy")


@dataclass(frozen=True)
class Block:
    """Consecutive seeds of a cell, trained as one stack."""

    cell: Cell
    spec: dict[str, Any]

    @property
    def key(self) -> str:
        return digest([self.spec, code_digest(), library_versions()])

    @property
    def steps(self) -> int:
        return int(self.spec["train"]["steps"])


class Store:
    """A folder of finished blocks, KEY.json, and of the checkpoints of unfinished ones beside them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def file(self, block: Block) -> Path:
        return self.folder / f"{block.key}.json"

    def checkpoint(self, block: Block) -> Path:
        return self.folder / f"{block.key}.safetensors"

    def load(self, block: Block) -> dict[str, Any] | None:
        """A finished block, or None when there is no whole file."""
        try:
            found = json.loads(self.file(block).read_text(encoding="utf-8"))
            if not set(found) >= RESULT or not rows_of(block.cell, found):
                return None
            return dict(found)
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def save(self, block: Block, result: str) -> None:
        """Keep a block's result, JSON text, for good; its checkpoint is done with."""
        write_atomically(self.file(block), result.encode())
        self.checkpoint(block).unlink(missing_ok=True)


def blocks(cell: Cell) -> list[Block]:
    """The cell's seeds, SEEDS_TOGETHER to a block, the rest in the last."""
    first, count = cell.spec["first_seed"], cell.spec["seeds"]
    return [
        Block(cell, cell.spec | {"first_seed": first + k, "seeds": min(SEEDS_TOGETHER, count - k)})
        for k in range(0, count, SEEDS_TOGETHER)
    ]


def rows_of(cell: Cell, result: dict[str, Any]) -> list[Row]:
    """A block's rows with their cell's arm and point."""
    point = tuple((axis, str(value)) for axis, value in cell.point.items())
    return [Row(cell.arm, point, **row) for row in result["rows"]]


@lru_cache(maxsize=1)
def library_versions() -> dict[str, str]:
    """The versions of what computes the numbers."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
