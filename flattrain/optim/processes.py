"""Whose gradient the ascent follows when several processes train one model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch
from torch import distributed, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parallel import DistributedDataParallel

from flattrain.ranges import Refused
from flattrain.rules.two_pass import TwoPass
from flattrain.types import Params

Perturbation = Literal["global", "local"]


class Processes:
    """What the passes of a step need to know of DistributedDataParallel.

    global  the first gradient is averaged over the processes like the second: nothing to do
    local   the first pass runs without averaging, and the processes agree on whether it was finite
    """

    def __init__(
        self, perturbation: Perturbation, ddp: DistributedDataParallel | None, member: TwoPass
    ) -> None:
        if perturbation not in ("global", "local"):
            raise Refused(f"perturbation must be 'global' or 'local', got {perturbation!r}")
        if perturbation == "local" and not isinstance(ddp, DistributedDataParallel):
            raise Refused("perturbation='local' needs ddp=, the model in DistributedDataParallel")
        if perturbation == "local" and member.combine is not None:
            raise Refused(
                "perturbation='local' would let the processes drift apart: this rule's step has a part of "
                "the first gradient, which is not averaged; use perturbation='global'"
            )
        self.ddp = ddp if perturbation == "local" else None

    def first_pass(self, ascends: bool) -> AbstractContextManager[None]:
        """Forward *and* backward belong inside: no_sync around backward alone still averages."""
        return self.ddp.no_sync() if self.ddp is not None and ascends else nullcontext()

    @contextmanager
    def averaging(self) -> Iterator[None]:
        """Refuse a forward pass in DistributedDataParallel under somebody's no_sync.

        `backward` takes .grad away before each pass, and with it what would have been averaged later.
        """

        def look(module: nn.Module, inputs: object = None) -> None:
            if torch.compiler.is_compiling():
                return
            if isinstance(module, DistributedDataParallel) and not module.require_backward_grad_sync:
                raise Refused(
                    "backward(closure) under no_sync() would let the processes drift apart; average at every "
                    "micro-batch (accelerate: sync_each_batch=True), or loop over them inside the closure"
                )

        if self.ddp is not None:
            look(self.ddp)
        several = distributed.is_available() and distributed.is_initialized()
        handle = register_module_forward_pre_hook(look) if several and self.ddp is None else None
        try:
            yield
        finally:
            if handle is not None:
                handle.remove()

    def gradients(self, params: Params) -> Params:
        """The gradients there are. A process that ascends alone takes 0 for those it lacks and others have:

        the second pass averages them, so no process may leave it out.
        """
        if self.ddp is None:
            return {k: p.grad for k, p in params.items() if p.grad is not None}
        return {k: torch.zeros_like(p) if p.grad is None else p.grad for k, p in params.items()}

    def agree(self, finite: bool) -> bool:
        """Whether it was finite everywhere: one process that skips the second pass would hang the others."""
        if self.ddp is None:
            return finite
        flag = torch.tensor(float(finite), device=next(self.ddp.parameters()).device)
        distributed.all_reduce(flag, distributed.ReduceOp.MIN, group=self.ddp.process_group)
        return bool(flag)
