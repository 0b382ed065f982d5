"""Linear algebra on parameter dicts: the few operations that a rule or an operator needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from flattrain.types import Moment, Params

# Without leaves for torch.func: a moment is the same for all that is stacked.
pytree.register_constant(Moment)


def dot(a: Params, b: Params) -> Tensor:
    """⟨a, b⟩ = Σ over all entries; of half precision in float32, of sharded tensors as a whole."""
    return torch.stack([_product(a[k], b[k]) for k in a]).sum()


def _product(x: Tensor, y: Tensor) -> Tensor:
    dtype = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else None
    total: Tensor = (x * y).sum(dtype=dtype)
    whole = getattr(total, "full_tensor", None)  # of a DTensor
    return total if whole is None else whole()


def norm(a: Params) -> Tensor:
    """‖a‖₂ over all entries together; of half precision in float32, of sharded tensors as a whole."""
    return torch.linalg.vector_norm(torch.stack([_length(v) for v in a.values()]))


def _length(v: Tensor) -> Tensor:
    dtype = torch.float32 if v.dtype in (torch.float16, torch.bfloat16) else None
    length: Tensor = torch.linalg.vector_norm(v, dtype=dtype)
    whole = getattr(length, "full_tensor", None)  # of a DTensor
    return length if whole is None else whole()


def inverse(size: Tensor) -> Tensor:
    """1 / size, and 0 where the size is 0: a direction of no length points nowhere."""
    return torch.where(size > 0, size.clamp(min=torch.finfo(size.dtype).tiny).reciprocal(), 0.0)


def axpy(alpha: Tensor | float, x: Params, y: Params) -> Params:
    """y + α x, out of place and without a tree for α x."""
    if isinstance(alpha, Tensor):
        return {k: torch.addcmul(v, x[k], alpha) for k, v in y.items()}
    return {k: torch.add(v, x[k], alpha=alpha) for k, v in y.items()}


def orthogonal(a: Params, b: Params) -> Params:
    """The part of a that is orthogonal to b, over all entries together; a itself where b is zero."""
    along = inverse(norm(b))
    towards = {k: along * v for k, v in b.items()}  # of length 1, so that no square under- or overflows
    return axpy(-dot(a, towards), towards, a)


def mix(weights: Tensor, trees: Sequence[Params]) -> Params:
    """Σ_k weights[k] · trees[k]."""
    return {
        name: torch.stack([w * tree[name] for w, tree in zip(weights.unbind(), trees, strict=True)]).sum(0)
        for name in trees[0]
    }


def flatten(a: Params) -> Tensor:
    """One vector, in the order of the dict."""
    return torch.cat([v.reshape(-1) for v in a.values()])


def unflatten(vector: Tensor, like: Params) -> Params:
    """The inverse of `flatten`, with the shapes of `like`."""
    parts = vector.split([v.numel() for v in like.values()])
    return {k: part.reshape(v.shape) for (k, v), part in zip(like.items(), parts, strict=True)}


def stack(trees: list[Params]) -> Params:
    """Seeds as a leading dimension S."""
    return {k: torch.stack([t[k] for t in trees]) for k in trees[0]}


def pick(stacked: Mapping[str, Tensor], index: int) -> Params:
    """Seed `index` of a stacked tree."""
    return {k: v[index] for k, v in stacked.items()}
