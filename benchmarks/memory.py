"""Peak memory of a method beyond its model, as a multiple of the plain step's, each in a fresh process.

    python -m benchmarks.memory GROUP METHOD      (used by `benchmarks.curvature --memory`)

What is counted is how far the peak resident set rises over two runs, after model, data and imports are there;
what a method imports on its way is found by running it in a forked process first.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.cases import plain, problem
from benchmarks.groups import GROUPS

PLAIN = "plain"


def peak() -> float:
    """MB. Not `ru_maxrss` where there is a choice: on Linux a child begins with its parent's."""
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        assert found is not None
        return int(found[1]) / 1024
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size / 1024**2 if sys.platform == "darwin" else size / 1024


def measured(key: str, name: str) -> float | None:
    """MB, by a process of its own; None where it failed."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.memory", key, name]
    done = subprocess.run(command, capture_output=True, text=True)
    return float(done.stdout.split()[-1]) if done.returncode == 0 else None


def imported(run: Callable[[], object]) -> list[str]:
    """The modules that a run brings in."""

    def after(queue: Any) -> None:
        before = set(sys.modules)
        run()
        queue.put(sorted(set(sys.modules) - before))

    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=after, args=(queue,))
    child.start()
    child.join()  # what it puts fits into a pipe
    if child.exitcode:
        raise SystemExit(f"the method fails with exit code {child.exitcode}")
    names: list[str] = queue.get()
    return names


def main(key: str, name: str) -> None:
    torch.set_num_threads(1)
    group = next(g for g in GROUPS if g.key == key)
    warm = torch.randn(8, 8, requires_grad=True)
    (warm @ warm).sum().backward()
    if name == PLAIN:
        run = plain(group)
    else:
        method = next(m for m in group.methods if m.name == name)
        assert method.work is not None
        run = method.work(problem(group.network)).run
    for module in imported(run):
        with contextlib.suppress(ImportError):  # a name that only its package can make
            importlib.import_module(module)
    before = peak()
    run()
    run()
    print(peak() - before)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
