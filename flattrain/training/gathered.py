"""Sharded weights that are whole only while an operation reads them, in passes of any order.

FSDP2 frees a layer's weights by hooks of its modules, through which nothing can be differentiated twice. Here
a parameter is gathered as an operation of the graph, forward an all-gather, backward a reduce-scatter of the
sum, and the transpose of that again a gather. Then the memory of the result is given back while the tensor
stays in the graph. Below autograd each operation passes a dispatch mode, which gathers what the operation
reads and gives it back afterwards. What autograd saves for a backward pass, and every view, shares that
memory, so the forward pass, the backward pass and the passes through it are treated alike.

In memory beside the shards: the whole weights of one operation, twice while they are copied. What comes back
to a weight is summed and cut up by `training.scattered`; autograd by itself would keep it whole. Sent: each
parameter once for each operation that reads it, and once at the start. Nothing is gathered ahead of its use.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from flattrain.ranges import Refused
from flattrain.types import Params


@contextmanager
def gathered(params: Params) -> Iterator[Params]:
    """The whole of each sharded parameter, on the graph, to be read and differentiated inside the context.

    Raises `Refused` for a parameter that `fully_shard` has not cut up.
    """
    on_use = _OnUse()
    with on_use:
        yield {name: on_use.whole(name, p) for name, p in params.items()}


class _OnUse(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.sources: dict[int, tuple[Tensor, Tensor, int]] = {}  # of a storage: shards, whole, bytes

    def whole(self, name: str, p: Tensor) -> Tensor:
        from torch.distributed.tensor import DTensor, Partial  # costs half a second to import

        if not isinstance(p, DTensor):
            raise Refused(f"parameter {name!r} is not sharded; call fully_shard on the model that holds it")
        whole = p.full_tensor(grad_placements=[Partial("sum")] * p.device_mesh.ndim)
        storage = whole.untyped_storage()
        # On a mesh that cuts into one piece it is the parameter's own memory.
        if storage.data_ptr() != p.to_local().untyped_storage().data_ptr():
            self.sources[storage._cdata] = (p, whole.data, storage.nbytes())
            storage.resize_(0)
        return whole

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        read = {s._cdata: s for s in _storages((args, kwargs))}
        empty = [s for key, s in read.items() if key in self.sources and not s.nbytes()]
        for storage in empty:
            storage.resize_(self.sources[storage._cdata][2])
            if not func.is_view:  # a view wants room for its bounds, and reads nothing
                self._fill(storage)
        try:
            return func(*args, **(kwargs or {}))
        finally:
            for storage in empty:
                storage.resize_(0)

    def _fill(self, storage: UntypedStorage) -> None:
        shards, whole, _ = self.sources[storage._cdata]
        with torch.no_grad():
            # `.data` has a version of its own, so autograd does not take this for a change of what it saved.
            whole.copy_(shards.full_tensor())  # type: ignore[attr-defined]


def _storages(tree: Any) -> list[UntypedStorage]:
    plain = (Tensor, torch.nn.Parameter)
    return [t.untyped_storage() for t in tree_leaves(tree) if type(t) in plain]
