"""Running the cells of a recipe on local processes, so that whatever is killed can be run again.

Every finished cell is one file, written atomically under the cell's hash; a running one has a checkpoint.
A second start finds both and does only what is missing. Workers end with their parent.
"""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import Any

from flattrain.lab.recipe import Cell, Recipe
from flattrain.lab.results import Row
from flattrain.lab.together import launched, lead, lead_check
from flattrain.ranges import Refused

_progress: Any = None  # in a worker: steps done, one slot per cell


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Only one process at a time works in a run folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = open(folder / ".lock", "w")  # noqa: SIM115  (held for the whole run)
    except OSError as error:
        raise Refused(f"{folder}: cannot write there ({error.strerror}); choose out=FOLDER") from None
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Refused(
                f"{folder}: another process is running this recipe there; wait, or choose out=FOLDER"
            ) from None
        yield


def result_file(folder: Path, cell: Cell) -> Path:
    return folder / "cells" / f"{cell.key}.json"


def load_result(folder: Path, cell: Cell) -> dict[str, Any] | None:
    """A finished cell, or None when there is no whole file."""
    try:
        found = json.loads(result_file(folder, cell).read_text(encoding="utf-8"))
        return found if isinstance(found, dict) and "rows" in found else None
    except (OSError, ValueError):
        return None


def preflight(cells: list[Cell], root: str | None) -> None:
    """Try each cell in small, here and now, so that nothing is written for a recipe that cannot run."""
    import torch

    from flattrain.lab.run import check

    if launched():
        return lead_check(cells, root)
    torch.set_num_threads(1)
    warnings = set()
    for cell in cells:
        try:
            warnings.add(check(cell.spec, root))
        except Refused as refused:
            raise Refused(f"{cell.label}: {refused}") from None
    for warning in sorted(warnings - {""}):
        print(f"flattrain: {warning}", file=sys.stderr)


def run_cells(
    recipe: Recipe,
    folder: Path,
    *,
    jobs: int,
    on_progress: Callable[[int], None],
    on_cell: Callable[[Cell, dict[str, Any]], None],
) -> None:
    """Run every cell that has no result yet; `on_progress` gets the steps done in all."""
    (folder / "cells").mkdir(exist_ok=True)
    todo, finished = [], 0
    for cell in recipe.cells:
        found = load_result(folder, cell)
        if found is None:
            todo.append(cell)
        else:
            finished += cell.steps
            on_cell(cell, found)
    on_progress(finished)
    if launched():
        return lead(recipe, todo, folder, finished, on_progress, on_cell)
    if not todo:
        return
    context = multiprocessing.get_context("spawn")
    slots = context.Array("q", len(todo), lock=False)
    # The longest first, so that the processes end together.
    order = sorted(range(len(todo)), key=lambda k: -todo[k].steps)
    workers = min(len(todo), jobs or os.cpu_count() or 1)
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(slots,)) as pool:
        pending: dict[Future[None], Cell] = {}
        for k in order:
            job = (todo[k].spec, recipe.raw["data"]["root"])
            pending[pool.submit(_work, k, job, str(result_file(folder, todo[k])))] = todo[k]
        try:
            while pending:
                done, _ = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
                on_progress(finished + sum(slots[:]))
                for future in done:
                    cell = pending.pop(future)
                    try:
                        future.result()
                    except BrokenProcessPool:
                        raise Refused(
                            "a worker was killed (out of memory?); nothing is lost: the same command "
                            "resumes, with jobs=1 it takes less memory"
                        ) from None
                    result = load_result(folder, cell)
                    if result is None:
                        raise Refused(f"{result_file(folder, cell)}: the result is gone; run again")
                    on_cell(cell, result)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def _begin(slots: Any) -> None:
    """In a new worker: one thread for the small nets, and no life after the parent's."""
    global _progress
    _progress = slots
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    import torch

    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait_for([sentinel])
    os._exit(1)


def _work(slot: int, job: tuple[dict[str, Any], str | None], result: str) -> None:
    from flattrain.lab.run import run_cell
    from flattrain.training.checkpoint import write_atomically

    path = Path(result)
    checkpoint = path.with_suffix(".safetensors")

    def progress(step: int) -> None:
        _progress[slot] = step

    found = run_cell(*job, checkpoint, progress)
    write_atomically(path, json.dumps(found).encode())
    checkpoint.unlink(missing_ok=True)


def rows_of(cell: Cell, result: dict[str, Any]) -> list[Row]:
    """A cell's rows with its arm and point."""
    point = tuple((axis, str(value)) for axis, value in cell.point.items())
    return [Row(cell.arm, point, **row) for row in result["rows"]]


def estimate_seconds(recipe: Recipe, cells: list[Cell], jobs: int) -> float:
    """Seconds that the cells would take, by timing a few steps and one measurement of each."""
    import torch

    from flattrain.lab.run import Experiment

    torch.set_num_threads(1)
    total = 0.0
    for cell in cells:
        experiment = Experiment(cell.spec, recipe.raw["data"]["root"])
        state = experiment.trainer.init()
        began = time.perf_counter()
        experiment.measure(state)
        total += (time.perf_counter() - began) * len(experiment.stops())
        target = min(cell.steps, 20)
        if target:
            state = experiment.trainer.advance(state, target)  # warm up, compile
            more = min(cell.steps, target + (20 if "vmap" in experiment.trainer.backend else 5000))
            began = time.perf_counter()
            state = experiment.trainer.advance(state, more)
            steps = max(state.step - target, 1)
            total += (time.perf_counter() - began) / steps * cell.steps
    return total / min(len(cells) or 1, jobs or os.cpu_count() or 1)
