"""Leave a module and the random numbers as they were found, whatever happens in between."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def untouched(module: nn.Module) -> Iterator[nn.Module]:
    """Restore on exit, also after an exception: the training mode of every part, buffers, gradients,

    requires_grad, and torch's global random state (of the CPU, and of every GPU in use).
    """
    modes = {part: part.training for part in module.modules()}
    buffers = [(b, b.detach().clone()) for b in module.buffers()]
    leaves = [
        (p, p.requires_grad, p.grad, None if p.grad is None else p.grad.clone()) for p in module.parameters()
    ]
    chance = torch.get_rng_state()
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        yield module
    finally:
        for part, training in modes.items():
            part.training = training
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
            for leaf, wanted, gradient, held in leaves:
                leaf.requires_grad_(wanted)
                leaf.grad = gradient
                if gradient is not None and held is not None:
                    gradient.copy_(held)
        torch.set_rng_state(chance)
        if on_gpus:
            torch.cuda.set_rng_state_all(on_gpus)
