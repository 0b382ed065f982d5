"""One recipe by several processes that torchrun starts: each cell's batches are shared among all of them.

    torchrun --nproc-per-node 2 -m flattrain recipe=NAME

Process 0 leads: it holds the run folder, says which cells are to be done, and alone writes and prints. The
others follow it through the same cells with the same checkpoint. Whoever fails first says so in one line, and
all end. The cells are those of a run by one process, up to rounding, and either can finish what the other
began.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flattrain.ranges import Refused

if TYPE_CHECKING:
    from flattrain.lab.recipe import Cell, Recipe

MARK = "flattrain/said"
GONE = "another process was killed (out of memory?); nothing is lost: the same command resumes"


def launched() -> bool:
    """Whether torchrun started this process as one of several."""
    return processes() > 1 and "RANK" in os.environ


def following() -> bool:
    """Whether another process leads this one."""
    return launched() and os.environ["RANK"] != "0"


def processes() -> int:
    """How many processes share the batches."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def complain(line: str) -> None:
    """One line on standard error; of several processes, from the first that has something to say."""
    if _first():
        who = f"process {os.environ['RANK']}: " if following() else ""
        print(f"flattrain: {who}{line}", file=sys.stderr, flush=True)


def as_one(work: Callable[[], int]) -> int:
    """Join the other processes for `work`; only process 0 is heard."""
    from torch import distributed

    backend = "cpu:gloo,cuda:nccl" if distributed.is_nccl_available() else "gloo"
    distributed.init_process_group(backend)
    silence = open(os.devnull, "w") if following() else None  # noqa: SIM115  (for the whole run)
    try:
        with contextlib.redirect_stdout(silence or sys.stdout):
            return work()
    except RuntimeError as error:
        # A process that ended takes the connections of the others with it: what they see is not the cause.
        if not _first():
            return 2
        if not isinstance(error, distributed.DistError) and "onnection" not in str(error):
            raise
        print(f"flattrain: {GONE}", file=sys.stderr, flush=True)
        return 2
    finally:
        with contextlib.suppress(RuntimeError):
            distributed.destroy_process_group()


def lead_check(cells: Sequence[Cell], root: str | None) -> None:
    """`preflight` by all processes, told by process 0 which cells there are."""
    keys = _announced([cell.key for cell in cells])
    _check(keys, {cell.key: cell for cell in cells}, root)


def lead(
    recipe: Recipe,
    todo: Sequence[Cell],
    folder: Path,
    finished: int,
    on_progress: Callable[[int], None],
    on_cell: Callable[[Cell, dict[str, Any]], None],
) -> None:
    """Process 0's part in the cells; it writes each result."""
    from flattrain.training.checkpoint import write_atomically

    _announced([cell.key for cell in todo])
    for cell in todo:
        path = folder / "cells" / f"{cell.key}.json"
        checkpoint = path.with_suffix(".safetensors")
        found = _cell(cell, recipe, checkpoint, partial(_more, on_progress, finished))
        write_atomically(path, json.dumps(found).encode())
        checkpoint.unlink(missing_ok=True)
        finished += cell.steps
        on_cell(cell, found)


def _more(on_progress: Callable[[int], None], finished: int, step: int) -> None:
    on_progress(finished + step)


def follow(recipe: Recipe) -> int:
    """The part of all other processes: the cells that process 0 names, in its order."""
    if recipe.raw["dry_run"]:
        return 0
    cells = {cell.key: cell for cell in recipe.cells}
    _check(_announced([]), cells, recipe.raw["data"]["root"])
    with tempfile.TemporaryDirectory(prefix="flattrain-") as folder:
        for key in _announced([]):
            _cell(_known(key, cells), recipe, Path(folder) / f"{key}.safetensors", lambda step: None)
    return 0


def _cell(cell: Cell, recipe: Recipe, checkpoint: Path, progress: Callable[[int], None]) -> dict[str, Any]:
    """The cell from process 0's checkpoint, which the others get a copy of."""
    from flattrain.lab.run import run_cell
    from flattrain.training.ranks import joined

    ranks = joined()
    stored = checkpoint.read_bytes() if checkpoint.exists() else b""
    content = ranks.same_bytes(stored if ranks.rank == 0 else b"")
    if ranks.rank and content:
        checkpoint.write_bytes(content)
    found = run_cell(cell.spec, recipe.raw["data"]["root"], checkpoint, progress, ranks)
    if ranks.rank:
        checkpoint.unlink(missing_ok=True)
    return found


def _check(keys: Sequence[str], cells: dict[str, Cell], root: str | None) -> None:
    from flattrain.lab.run import check
    from flattrain.training.ranks import joined

    for key in keys:
        cell = _known(key, cells)
        try:
            check(cell.spec, root, joined())
        except Refused as refused:
            raise Refused(f"{cell.label}: {refused}") from None


def _known(key: str, cells: dict[str, Cell]) -> Cell:
    if key not in cells:
        raise Refused(
            "the processes read different recipes or run different code; use the same on every host"
        )
    return cells[key]


def _announced(keys: list[str]) -> list[str]:
    """Process 0's list."""
    from flattrain.training.ranks import joined

    return list(json.loads(joined().same_bytes(json.dumps(keys).encode())))


def _first() -> bool:
    """Whether no other process has spoken before; true without others."""
    if not launched():
        return True
    from torch import distributed

    if not distributed.is_initialized():
        return not following()
    store = distributed.distributed_c10d._get_default_store()
    try:
        return bool(store.add(MARK, 1) == 1)
    except RuntimeError:  # the store went with the process that held it
        return False
