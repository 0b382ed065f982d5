"""Which blocks of a recipe must run, and their results as they come in.

Every finished block is one file, written atomically under the hash of its content; a running one has a
checkpoint. A second start finds both and does only what is missing or changed, whatever was killed before.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flattrain.lab import catalog
from flattrain.lab.cells import Block, Store, blocks
from flattrain.lab.executors.job import Executor, Job
from flattrain.lab.recipe import Cell, Recipe
from flattrain.lab.together import launched, lead_check, together
from flattrain.ranges import Refused

EXECUTORS = {"local": "lab.executors.local:local", "ray": "lab.executors.ray:ray"}


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


def preflight(todo: list[Block], root: str | None) -> None:
    """Try each cell of these blocks in small, here and now: nothing is written for what cannot run."""
    import torch

    from flattrain.lab.run import check

    specs = {block.cell.label: block.spec for block in todo}
    if launched():
        return lead_check(specs, root)
    torch.set_num_threads(1)
    warnings = set()
    for label, spec in specs.items():
        try:
            warnings.add(check(spec, root))
        except Refused as refused:
            raise Refused(f"{label}: {refused}") from None
    for warning in sorted(warnings - {""}):
        print(f"flattrain: {warning}", file=sys.stderr)


def missing(recipe: Recipe, store: Store) -> list[Block]:
    """The blocks without a result, each content once: two arms may ask for the same."""
    found = {b.key: b for cell in recipe.cells for b in blocks(cell)}
    return [block for block in found.values() if store.load(block) is None]


def executor_of(recipe: Recipe) -> Executor:
    """What `execute` names: local processes, or the tasks of a Ray cluster; under torchrun its processes."""
    if launched():
        return together()
    choice = catalog.choose(EXECUTORS, recipe.raw["execute"], "execute")
    built: Executor = catalog.build(choice, workers=recipe.raw["jobs"])
    return built


def run_cells(
    recipe: Recipe,
    store: Store,
    executor: Executor,
    *,
    on_progress: Callable[[int], None],
    on_cell: Callable[[Cell, list[dict[str, Any]]], None],
) -> None:
    """Run every block that has no result yet.

    `on_progress` gets the steps done in all, `on_cell` each cell with the results of its blocks.
    """
    todo = missing(recipe, store)
    if todo:
        store.folder.mkdir(parents=True, exist_ok=True)
    waiting = {block.key for block in todo}
    finished = steps_of(recipe) - sum(block.steps for block in todo)
    whole = [cell for cell in recipe.cells if not waiting & {b.key for b in blocks(cell)}]
    rest = [cell for cell in recipe.cells if cell not in whole]

    def report(cells: list[Cell]) -> None:
        for cell in cells:
            on_cell(cell, results_of(cell, store))

    report(whole)
    on_progress(finished)
    root = recipe.raw["data"]["root"]
    jobs = [Job(b.cell.label, b.steps, b.spec, root, str(store.checkpoint(b))) for b in todo]
    for k, result in executor(jobs, lambda steps: on_progress(finished + steps)) if jobs else ():
        store.save(todo[k], result)
        waiting.discard(todo[k].key)
        report([cell for cell in rest if not waiting & {b.key for b in blocks(cell)}])
        rest = [cell for cell in rest if waiting & {b.key for b in blocks(cell)}]


def results_of(cell: Cell, store: Store) -> list[dict[str, Any]]:
    """The results of a cell's blocks, all of which must be there."""
    found = []
    for block in blocks(cell):
        result = store.load(block)
        if result is None:
            raise Refused(f"{store.file(block)}: the result of {cell.label} is gone; run again")
        found.append(result)
    return found


def steps_of(recipe: Recipe) -> int:
    """Steps of all blocks."""
    return sum({b.key: b.steps for cell in recipe.cells for b in blocks(cell)}.values())


def estimate_seconds(todo: list[Block], root: str | None, jobs: int) -> float:
    """Seconds that the blocks would take, by timing a few steps and one measurement of each kind."""
    import torch

    torch.set_num_threads(1)
    kinds = [json.dumps(_kind(block.spec), sort_keys=True) for block in todo]
    times = {kind: _seconds(block, root) for kind, block in dict(zip(kinds, todo, strict=True)).items()}
    return sum(times[kind] for kind in kinds) / min(len(todo) or 1, jobs or os.cpu_count() or 1)


def _kind(value: Any) -> Any:
    """A spec without its seed and its real numbers, which change what a step computes, not what it costs."""
    if isinstance(value, dict):
        return {k: _kind(v) for k, v in value.items() if k != "first_seed"}
    if isinstance(value, list | tuple):
        return [_kind(v) for v in value]
    return None if isinstance(value, float) else value


def _seconds(block: Block, root: str | None) -> float:
    from flattrain.lab.run import Experiment

    experiment = Experiment(block.spec, root)
    state = experiment.trainer.init()
    began = time.perf_counter()
    experiment.measure(state, [])
    total = (time.perf_counter() - began) * len(experiment.stops())
    target = min(block.steps, 20)
    if target:
        state = experiment.trainer.advance(state, target)  # warm up, compile
        more = min(block.steps, target + (20 if "vmap" in experiment.trainer.backend else 5000))
        began = time.perf_counter()
        state = experiment.trainer.advance(state, more)
        total += (time.perf_counter() - began) / max(state.step - target, 1) * block.steps
    return total
