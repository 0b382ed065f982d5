"""Blocks on processes of this machine, which end with their parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for
from typing import Any

from flattrain.lab.executors.job import Executor, Job, Progress, work
from flattrain.ranges import Refused, Steps, checked

_progress: Any = None  # in a worker: steps done, one slot per job


@checked
def local(*, workers: Steps | None = None) -> Executor:
    """At most `workers` processes at a time, 0 for one per core; the longest jobs first."""

    def run(jobs: list[Job], on_steps: Progress) -> Iterator[tuple[int, str]]:
        if multiprocessing.get_start_method(allow_none=True) not in multiprocessing.get_all_start_methods():
            multiprocessing.set_start_method(
                "spawn", force=True
            )  # joblib's own, in which children cannot begin
        context = multiprocessing.get_context("spawn")
        slots = context.Array("q", len(jobs), lock=False)
        count = min(len(jobs), workers or os.cpu_count() or 1)
        with ProcessPoolExecutor(count, mp_context=context, initializer=_begin, initargs=(slots,)) as pool:
            try:
                # The longest first, so that the processes end together.
                order = sorted(range(len(jobs)), key=lambda k: -jobs[k].steps)
                pending: dict[Future[str], int] = {pool.submit(_work, k, jobs[k]): k for k in order}
                while pending:
                    done, _ = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
                    on_steps(sum(slots[:]))
                    for future in done:
                        yield pending.pop(future), _result(future)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for process in multiprocessing.active_children():
                    process.terminate()
                raise

    return run


def _result(future: Future[str]) -> str:
    try:
        return future.result()
    except BrokenProcessPool:
        raise Refused(
            "a worker was killed (out of memory?); nothing is lost: the same command "
            "resumes, with jobs=1 it takes less memory"
        ) from None


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


def _work(slot: int, job: Job) -> str:
    def progress(step: int) -> None:
        _progress[slot] = step

    return work(job, progress)
