"""Tracking in Weights & Biases: online when logged in, offline otherwise, never in the way of the run.

Whatever goes wrong in the tracker is said in one line and the run goes on; the table on disk is complete
without it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

from flattrain.lab.recipe import Cell, Recipe
from flattrain.lab.results import Row
from flattrain.lab.verdicts import Verdict


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
    started = _safely(lambda: _start(recipe, folder))
    return Wandb(started) if started is not None else Silent()


def _safely(action: Callable[[], Any]) -> Any:
    try:
        return action()
    except Exception as error:
        first = (str(error).strip().split("\n") or [""])[0]
        print(
            f"flattrain: tracking: {type(error).__name__}: {first[:150]}; the run goes on",
            file=sys.stderr,
        )
        return None


def _mode() -> Any:
    """$WANDB_MODE, or online when a key is at hand, or offline; a prompt is never shown."""
    import wandb

    chosen = os.environ.get("WANDB_MODE")
    if chosen:
        return chosen
    return "online" if os.environ.get("WANDB_API_KEY") or wandb.api.api_key else "offline"


def _start(recipe: Recipe, folder: Path) -> Any:
    import wandb

    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", "flattrain"),
        name=f"{recipe.name}-{recipe.key[:8]}",
        group=recipe.name,
        dir=str(folder),
        mode=_mode(),
        config={k: v for k, v in recipe.raw.items() if k != "presets"},
        settings=wandb.Settings(init_timeout=30, silent=True, console="off"),
    )
    run.define_metric("train_step")
    run.define_metric("*", step_metric="train_step")
    return run


class Wandb:
    """One W&B run per study: curves per arm and seed, the verdict table, the figures and the report."""

    def __init__(self, run: Any) -> None:
        self.run = run

    def cell(self, cell: Cell, rows: list[Row]) -> None:
        _safely(lambda: self._cell(cell, rows))

    def _cell(self, cell: Cell, rows: list[Row]) -> None:
        by_step: dict[int, dict[str, list[float]]] = {}
        for row in rows:
            curves = by_step.setdefault(row.step, {})
            curves.setdefault(f"{cell.label}/{row.quantity}", []).append(row.value)
            curves[f"{cell.label}/{row.quantity}/seed {row.seed}"] = [row.value]
        for step, curves in sorted(by_step.items()):
            self.run.log({"train_step": step} | {k: fmean(v) for k, v in curves.items()})

    def finish(self, verdicts: list[Verdict], folder: Path) -> None:
        _safely(lambda: self._finish(verdicts, folder))

    def _finish(self, verdicts: list[Verdict], folder: Path) -> None:
        import wandb

        columns = ["claim", "verdict", "estimate", "low", "high", "n", "says", "source"]
        table = wandb.Table(columns=columns)
        for v in verdicts:
            j = v.as_json()
            low, high = j["interval"] or (None, None)
            table.add_data(v.claim.id, v.verdict, j["estimate"], low, high, j["n"], j["says"], j["source"])
        logged: dict[str, Any] = {"verdicts": table}
        for figure in sorted((folder / "figures").glob("*.png")):
            logged[f"figures/{figure.stem}"] = wandb.Image(str(figure))
        logged["report"] = wandb.Html(str(folder / "report.html"))
        self.run.log(logged)
        for v in verdicts:
            self.run.summary[f"verdict/{v.claim.id}"] = v.verdict
        self.run.finish()
