"""Tensors of which each process holds a part (DTensor, as in FSDP2): that part, and the whole's length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def local(t: Tensor) -> Tensor:
    """The part of t that this process holds, sharing its memory; t itself where it is not a DTensor."""
    return getattr(t, "_local_tensor", t)


def alike(a: Tensor, b: Tensor) -> bool:
    """Whether the two are cut up in the same way, so that what acts on entries may act on the parts."""
    return getattr(a, "placements", None) == getattr(b, "placements", None)


def length(tensors: Sequence[Tensor]) -> Tensor:
    """‖·‖₂ of all tensors together: of half precision in float32, of sharded tensors as a whole.

    Parts that are cut up alike are summed before the processes talk: one exchange, not one per tensor.
    """
    groups: dict[Any, list[Tensor]] = {}
    for t in tensors:
        how = getattr(t, "placements", None)
        if how is not None and any(p.is_partial() for p in how):
            t, how = t.full_tensor(), None  # type: ignore[attr-defined]
        groups.setdefault(None if how is None else (t.device_mesh, how), []).append(local(t))  # type: ignore[attr-defined]
    sizes = [_whole(_length(parts), where) for where, parts in groups.items()]
    if len(sizes) == 1:
        return sizes[0]
    return torch.linalg.vector_norm(torch.stack([size.to(sizes[0]) for size in sizes]))


def _length(tensors: Sequence[Tensor]) -> Tensor:
    dense = [t.coalesce().values() if t.is_sparse else t for t in tensors]
    short = any(t.dtype in (torch.float16, torch.bfloat16) for t in dense)
    norms: Sequence[Tensor] = torch._foreach_norm(dense, 2, torch.float32 if short else None)
    if len({n.device for n in norms}) > 1:
        norms = [n.to(norms[0].device) for n in norms]
    return torch.linalg.vector_norm(torch.stack(list(norms)))


def _whole(size: Tensor, where: Any) -> Tensor:
    """The length of what lies on all processes of a mesh, from that of the part here."""
    if where is None:
        return size
    from torch.distributed.tensor import DTensor, Partial, Replicate  # costs half a second to import

    mesh, placements = where
    summed = [Replicate() if p.is_replicate() else Partial() for p in placements]
    square = DTensor.from_local(size.double() ** 2, mesh, summed, run_check=False)
    return square.full_tensor().sqrt().to(size.dtype)
