"""What must not differ between the two passes of a step, and what the second must leave as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.module import register_module_forward_pre_hook

Undo = Callable[[], None]


def keep_statistics() -> Undo:
    """From here until the returned function is called, normalisations move no running statistics for good.

    Whatever normalisation layer runs in between is found as it runs, so no model has to be named.
    """
    saved: dict[int, tuple[nn.Module, list[Tensor]]] = {}

    def before(module: nn.Module, inputs: object) -> None:
        if isinstance(module, _NormBase) and module.training and id(module) not in saved:
            saved[id(module)] = (module, [b.clone() for b in module.buffers(recurse=False)])

    handle = register_module_forward_pre_hook(before)

    def undo() -> None:
        handle.remove()
        with torch.no_grad():
            for module, values in saved.values():
                for buffer, value in zip(module.buffers(recurse=False), values, strict=True):
                    buffer.copy_(value)

    return undo


class Randomness:
    """torch's generators on the CPU and on the devices of the parameters, as they are now."""

    def __init__(self, params: Iterable[Tensor]) -> None:
        self.devices = sorted({p.device.index or 0 for p in params if p.device.type == "cuda"})
        self.states = self._now()

    def _now(self) -> list[Tensor]:
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state(k) for k in self.devices)]

    def _set(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        for k, state in zip(self.devices, states[1:], strict=True):
            torch.cuda.set_rng_state(state, k)

    @contextmanager
    def again(self) -> Iterator[None]:
        """The same random numbers once more: dropout masks, augmentation."""
        after = self._now()
        self._set(self.states)
        try:
            yield
        finally:
            self._set(after)
