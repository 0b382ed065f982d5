"""Tracking of a run: whatever a tracker does, the run neither fails nor waits for it longer than a bound.

W&B has a process of its own (`lab.wandb_process`), fed by a queue that never blocks. Its troubles are said in
one line. At the end the run waits at most `patience()` seconds for it, then ends the process: what it has
logged so far lies in the run folder, and `wandb sync` uploads it. The table on disk is complete without it.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any, Protocol

from flattrain.lab.recipe import Cell, Recipe
from flattrain.lab.results import Row
from flattrain.lab.verdicts import Verdict

PATIENCE = 60.0  # seconds


class Tracker(Protocol):
    """What a backend takes: the rows of each finished cell, and the verdicts with the report."""

    def cell(self, cell: Cell, rows: list[Row]) -> None: ...

    def finish(self, verdicts: list[Verdict], folder: Path) -> None: ...


class Silent:
    """No tracking."""

    def cell(self, cell: Cell, rows: list[Row]) -> None: ...

    def finish(self, verdicts: list[Verdict], folder: Path) -> None: ...


def tracker(name: str, recipe: Recipe, folder: Path) -> Tracker:
    """The backend of that name, or none if it does not come up."""
    if name != "wandb":
        return Silent()
    try:
        return Wandb(recipe, folder)
    except (OSError, RuntimeError) as error:
        say(f"{type(error).__name__}: {error}; the run goes on without")
        return Silent()


def patience() -> float:
    """Seconds to wait for the tracker at the end: $FLATTRAIN_TRACKING_SECONDS, or 60."""
    try:
        seconds = float(os.environ.get("FLATTRAIN_TRACKING_SECONDS", ""))
    except ValueError:
        return PATIENCE
    return max(0.0, seconds) if math.isfinite(seconds) else PATIENCE


def say(message: str) -> None:
    """One line on standard error."""
    print(f"flattrain: tracking: {' '.join(message.split())[:300]}", file=sys.stderr, flush=True)


class Wandb:
    """W&B at arm's length: a queue, and a process at its other end."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        from flattrain.lab.wandb_process import Study, serve

        study = Study(
            recipe.name,
            recipe.key,
            {k: v for k, v in recipe.raw.items() if k != "presets"},
            str(folder),
            sum(cell.spec["seeds"] for cell in recipe.cells),
        )
        context = multiprocessing.get_context("spawn")
        self.queue: Any = context.Queue()
        self.queue.cancel_join_thread()  # a tracker that hangs must not hold the program when it ends
        self.process = context.Process(target=serve, args=(study, self.queue), daemon=True)
        self.process.start()

    def cell(self, cell: Cell, rows: list[Row]) -> None:
        self.queue.put(("cell", cell.label, cell.arm, dict(cell.point), rows))

    def finish(self, verdicts: list[Verdict], folder: Path) -> None:
        self.queue.put(("finish", {v.claim.id: v.as_json() for v in verdicts}, str(folder)))
        seconds = patience()
        self.process.join(min(seconds, 5.0))
        if self.process.is_alive() and seconds > 5:
            say(f"W&B takes its time; waiting for it at most {seconds:.0f} s")
            self.process.join(seconds - 5)
        if self.process.is_alive():
            say(f"left behind after {seconds:.0f} s; wandb sync {folder}/wandb/* uploads what is there")
            self.process.terminate()
            self.process.join(2)
            if self.process.is_alive():
                self.process.kill()
