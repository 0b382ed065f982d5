"""Blocks as tasks of a Ray cluster: one that is named by its address, or one started here for the run.

A task gets a spec and gives back JSON text, so no file system need be shared; where the run's folder is there
all the same, a task that is retried goes on from its checkpoint. A worker that dies is replaced and its task
retried, on another node if need be. Ray's usage statistics and dashboard stay off.
"""

from __future__ import annotations

import importlib.util
import os
import socket
from collections.abc import Iterator
from typing import Any

from flattrain.lab.cell import code_digest
from flattrain.lab.executors.job import Executor, Job, Progress, work
from flattrain.ranges import Refused, Steps, checked

RETRIES = 3  # of one task whose worker dies


@checked
def ray(*, address: str | None = None, workers: Steps | None = None) -> Executor:
    """Tasks on the cluster at `address`, or on one started here with `workers` processes, 0: one per core."""
    if importlib.util.find_spec("ray") is None:
        raise Refused("execute=ray: Ray is not installed; pip install 'flattrain[ray]'")
    if address is not None and address != "auto":
        _reach(address)

    def run(jobs: list[Job], on_steps: Progress) -> Iterator[tuple[int, str]]:
        cluster = _connect(address, workers or os.cpu_count() or 1)
        try:
            # A worker that runs out of memory again and again must not be retried for ever.
            task = cluster.remote(num_cpus=1, max_retries=RETRIES)(_task)
            order = sorted(range(len(jobs)), key=lambda k: -jobs[k].steps)
            pending = {task.remote(jobs[k]._asdict(), code_digest()): k for k in order}
            steps = 0
            while pending:
                done, _ = cluster.wait(list(pending), num_returns=1)
                for reference in done:
                    k = pending.pop(reference)
                    result = _result(cluster, reference, jobs[k])
                    steps += jobs[k].steps
                    on_steps(steps)
                    yield k, result
        finally:
            cluster.shutdown()

    return run


def _reach(address: str) -> None:
    """Ray itself tries for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError, OverflowError) as error:
        raise Refused(
            f"execute=ray: no cluster at {address} ({error}); give HOST:PORT or ray://HOST:PORT, "
            "or no address for workers on this machine"
        ) from None


def _connect(address: str | None, workers: int) -> Any:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # leave CUDA_VISIBLE_DEVICES alone
    import ray as cluster

    own = {} if address else {"num_cpus": workers, "include_dashboard": False}
    try:
        # Without an address of ours none from the environment either: `local` means here.
        cluster.init(address=address or "local", log_to_driver=False, logging_level="ERROR", **own)
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        first = (str(error).strip().splitlines() or [""])[0][:200]
        raise Refused(f"execute=ray: no cluster at {address or 'this machine'} ({first})") from None
    return cluster


def _result(cluster: Any, reference: Any, job: Job) -> str:
    errors = cluster.exceptions
    try:
        return str(cluster.get(reference))
    except errors.WorkerCrashedError:
        raise Refused(
            f"{job.label}: its worker was killed {RETRIES + 1} times (out of memory?); "
            "nothing finished is lost, the same command resumes"
        ) from None
    except errors.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, Refused):
            raise cause from None
        raise Refused(f"{job.label}: {type(cause).__name__} on the cluster: {cause}") from None
    except errors.RayError as error:
        first = (str(error).strip().splitlines() or [""])[0][:200]
        raise Refused(
            f"{job.label}: the cluster is gone ({type(error).__name__}: {first}); "
            "nothing finished is lost, the same command resumes"
        ) from None


def _task(job: dict[str, Any], code: str) -> str:
    """On a worker: refuse code that would give other numbers than the caller's, then run."""
    import torch

    if code_digest() != code:
        raise Refused("execute=ray: the cluster has another version of flattrain; install the same one there")
    torch.set_num_threads(1)
    return work(Job(**job), lambda step: None)
