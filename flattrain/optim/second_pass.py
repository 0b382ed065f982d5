"""What must not differ between the two passes of a step, and what the second must leave as it was."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.module import register_module_forward_pre_hook

Undo = Callable[[], None]


def keep_statistics(params: Sequence[Tensor], watched: Sequence[nn.Module] = ()) -> Undo:
    """From here until the returned function is called, normalisations move no running statistics for good.

    Where no model is `watched`, models are found as they are called: all normalisations of the outermost
    module, since those inside of a compiled one run unseen. A model that is called inside of compiled code
    is not found; there is a warning then.
    """
    saved: list[tuple[nn.Module, list[Tensor]]] = []
    known: set[nn.Module] = set()

    def keep(module: nn.Module, inputs: object = None) -> None:
        if torch.compiler.is_compiling() or module in known:
            return
        for part in module.modules():
            if part not in known and isinstance(part, _NormBase) and part.training:
                saved.append((part, [b.clone() for b in part.buffers(recurse=False)]))
            known.add(part)

    for module in watched:
        keep(module)
    handle = None if watched else register_module_forward_pre_hook(keep)

    def undo() -> None:
        if handle is not None:
            handle.remove()
        with torch.no_grad():
            for module, values in saved:
                for buffer, value in zip(module.buffers(recurse=False), values, strict=True):
                    buffer.copy_(value)
        ran = handle is not None and any(p.grad is not None for p in params)
        if ran and _compiled() and not _has(known, params):
            warnings.warn(
                "the second pass called no module with these parameters outside of compiled code; if the "
                "model has BatchNorm, name it with optimizer.watch(model), or its statistics move twice",
                stacklevel=2,
            )

    return undo


def _compiled() -> bool:
    """Whether torch.compile has compiled anything."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    return dynamo is not None and dynamo.counters["stats"].get("unique_graphs", 0) > 0


def _has(modules: Iterable[nn.Module], params: Iterable[Tensor]) -> bool:
    wanted = {id(p) for p in params}
    return any(id(p) in wanted for module in modules for p in module.parameters(recurse=False))


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
