"""What an executor gets and gives back: plain values, so that no file system need be shared."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple


class Job(NamedTuple):
    """One block to run: its spec, where data lie, and where its checkpoint may be kept."""

    label: str
    steps: int
    spec: dict[str, Any]
    root: str | None
    checkpoint: str


Progress = Callable[[int], None]  # gets the steps done so far, of all jobs together
# Yields each job's place and its result as JSON text, in the order in which they finish.
Executor = Callable[[list[Job], Progress], Iterator[tuple[int, str]]]


def work(job: Job, progress: Progress) -> str:
    """Run the job here; its result as JSON text. Without the folder of its checkpoint it keeps none."""
    from flattrain.lab.run import run_cell

    checkpoint = Path(job.checkpoint)
    keep = checkpoint if checkpoint.parent.is_dir() else None
    return json.dumps(run_cell(job.spec, job.root, keep, progress))
