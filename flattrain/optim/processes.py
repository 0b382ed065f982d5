"""Whose gradient the ascent follows when several processes train one model."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from flattrain.ranges import Refused
from flattrain.rules.two_pass import TwoPass

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

    def first_pass(self) -> AbstractContextManager[None]:
        """Forward *and* backward belong inside: no_sync around backward alone still averages."""
        return nullcontext() if self.ddp is None else self.ddp.no_sync()

    def agree(self, finite: bool) -> bool:
        """Whether it was finite everywhere: one process that skips the second pass would hang the others."""
        if self.ddp is None:
            return finite
        flag = torch.tensor(float(finite), device=next(self.ddp.parameters()).device)
        distributed.all_reduce(flag, distributed.ReduceOp.MIN, group=self.ddp.process_group)
        return bool(flag)
