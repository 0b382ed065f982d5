"""The one loop: measure at a milestone, step to the next, save by the clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flattrain.training.checkpoint import load_state, save_state
from flattrain.training.trainer import State, Trainer

Rows = list[dict[str, Any]]


def milestones(steps: int, count: int, spacing: str) -> list[int]:
    """0 and `count` further steps up to `steps`: evenly spaced, or evenly in the logarithm from 10 on."""
    if steps == 0 or count == 0:
        return sorted({0, steps})
    if spacing == "linear":
        points = [round(steps * k / count) for k in range(1, count + 1)]
    else:
        first = min(10, steps)
        points = (
            [round(first * (steps / first) ** (k / (count - 1))) for k in range(count)]
            if count > 1
            else [steps]
        )
    return sorted({0, *points, steps})


def run(
    trainer: Trainer,
    stops: Sequence[int],
    measure: Callable[[State, Rows], Rows],
    *,
    checkpoint: Path | None = None,
    every_seconds: float = 3.0,
    progress: Callable[[int], None] = lambda step: None,
    done: Callable[[Rows], bool] = lambda rows: False,
) -> Rows:
    """Train through `stops`, measuring at each; resume from `checkpoint` if it is there.

    `measure` sees the rows of the stops before as well. Rows measured before an interruption are kept in the
    checkpoint, so at most the steps since the last one are taken again, with the same numbers. Saving takes
    at most a twentieth of the time. Where `done` says so of the rows, that stop is the last.
    """
    found = load_state(checkpoint) if checkpoint else None
    state, rows = found if found else (trainer.init(), [])
    measured = {row["step"] for row in rows}
    due = time.monotonic() + every_seconds
    for stop in stops:
        while state.step < stop:
            state = trainer.advance(state, stop)
            progress(state.step)
            if checkpoint and time.monotonic() >= due:
                began = time.monotonic()
                save_state(checkpoint, state, rows)
                due = time.monotonic() + max(every_seconds, 20 * (time.monotonic() - began))
        if stop not in measured:
            rows = rows + measure(state, rows)
        if done(rows):
            progress(stops[-1])
            break
    return rows
