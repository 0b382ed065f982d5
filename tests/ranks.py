"""Two processes that talk by gloo, kept for all tests of a session: starting them anew takes seconds."""

from __future__ import annotations

import tempfile
import traceback

import pytest
import torch
from torch import distributed, multiprocessing

WORLD = 2
PATIENCE = 90.0  # seconds until processes that wait for one another are taken for a deadlock


def _serve(rank, store, pipe):
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD)
    while (job := pipe.recv()) is not None:
        function, arguments = job
        torch.manual_seed(rank)
        try:
            pipe.send((True, function(rank, *arguments)))
        except Exception:
            pipe.send((False, traceback.format_exc()))
    distributed.destroy_process_group()


class Ranks:
    """`ranks(function, *arguments)` is [function(0, *arguments), function(1, *arguments)], run side by side.

    `function` stands at the top of a module; what it returns is detached, or plain numbers.
    """

    def __init__(self):
        self.workers = []

    def start(self):
        context = multiprocessing.get_context("spawn")
        store = tempfile.mktemp(prefix="flattrain-ranks-")
        for rank in range(WORLD):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(rank, store, there), daemon=True)
            process.start()
            self.workers.append((process, here))

    def __call__(self, function, *arguments):
        if not self.workers:
            self.start()
        for _, pipe in self.workers:
            pipe.send((function, arguments))
        found = []
        for rank, (_, pipe) in enumerate(self.workers):
            if not pipe.poll(PATIENCE):
                self.stop()
                pytest.fail(f"process {rank} did not answer in {PATIENCE:.0f} s: a deadlock")
            found.append(pipe.recv())
        failed = [f"process {rank}:\n{what}" for rank, (fine, what) in enumerate(found) if not fine]
        if failed:
            self.stop()  # they may no longer be in step with one another
            pytest.fail("\n".join(failed))
        return [what for _, what in found]

    def stop(self):
        for process, _ in self.workers:
            process.terminate()
            process.join()
        self.workers = []
