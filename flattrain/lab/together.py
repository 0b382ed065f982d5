"""One recipe by several processes that torchrun starts: each cell's batches are shared among all of them.

    torchrun --nproc-per-node 2 -m flattrain recipe=NAME

Process 0 leads: it reads the recipe, holds the run folder, and alone writes and prints. It sends the others
what there is to do, as plain values, and they follow it through the same blocks from the same checkpoint.
Whoever fails first says so in one line, and all end. The blocks are those of a run by one process, up to
rounding, and either can finish what the other began.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from flattrain.lab.cell import code_digest
from flattrain.lab.executors.job import Executor, Job, Progress
from flattrain.ranges import Refused

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
    # A process that has ended is told by its own line; torch, which reads this once, would add its stack.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
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


def lead_check(specs: dict[str, dict[str, Any]], root: str | None) -> None:
    """`preflight` by all processes of the cells {label: spec}; process 0's part."""
    _check(_announced(Task("check", [Job(label, 0, spec, root, "") for label, spec in specs.items()])))


def together() -> Executor:
    """Each block by all processes at once, one block after the other; process 0's part."""

    def run(jobs: list[Job], on_steps: Progress) -> Iterator[tuple[int, str]]:
        done = 0
        for k, job in enumerate(_announced(Task("run", jobs)).jobs):
            yield k, _run(job, Path(job.checkpoint), partial(_more, on_steps, done))
            done += job.steps

    return run


def _more(on_steps: Progress, done: int, step: int) -> None:
    on_steps(done + step)


def led(work: Callable[[], int]) -> int:
    """Process 0's whole part, after which the others may go."""
    code = work()
    _announced(Task("end", []))
    return code


def follow() -> int:
    """The part of all other processes: what process 0 sends, in its order."""
    with tempfile.TemporaryDirectory(prefix="flattrain-") as folder:
        while (task := _announced(Task("", []))).what != "end":
            if task.what == "check":
                _check(task)
            else:
                for k, job in enumerate(task.jobs):
                    _run(job, Path(folder) / f"{k}.safetensors", lambda step: None)
    return 0


class Task(NamedTuple):
    """What all processes are to do: "check" or "run" the jobs, or "end"."""

    what: str
    jobs: list[Job]


def _announced(task: Task) -> Task:
    """Process 0's task. Refused where the processes run different code."""
    from flattrain.training.ranks import joined

    mine = json.dumps([code_digest(), task.what, task.jobs])
    code, what, jobs = json.loads(joined().same_bytes(mine.encode()))
    if code != code_digest():
        raise Refused("the processes run different code; use the same version on every host")
    return Task(what, [Job(*job) for job in jobs])


def _run(job: Job, checkpoint: Path, progress: Progress) -> str:
    """The block from process 0's checkpoint, which the others get a copy of."""
    from flattrain.lab.run import run_cell
    from flattrain.training.ranks import joined

    ranks = joined()
    stored = checkpoint.read_bytes() if ranks.rank == 0 and checkpoint.exists() else b""
    content = ranks.same_bytes(stored)
    if ranks.rank and content:
        checkpoint.write_bytes(content)
    found = run_cell(job.spec, job.root, checkpoint, progress, ranks)
    if ranks.rank:
        checkpoint.unlink(missing_ok=True)
    return json.dumps(found)


def _check(task: Task) -> None:
    from flattrain.lab.run import check
    from flattrain.training.ranks import joined

    for job in task.jobs:
        try:
            check(job.spec, job.root, joined())
        except Refused as refused:
            raise Refused(f"{job.label}: {refused}") from None


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
