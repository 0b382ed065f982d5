"""The Hessian of the mean loss as a matrix-free symmetric operator on flat vectors.

H v = Σ_b (n_b / n) ∇²L_b v        (batches weighted by their counts, whatever their sizes)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from flattrain.core import trees
from flattrain.types import Params

LossFn = Callable[[Params, Tensor, Tensor], Tensor]
Matvec = Callable[[Tensor], Tensor]


def hessian(loss: LossFn, params: Params, batches: Sequence[tuple[Tensor, Tensor]]) -> tuple[Matvec, int]:
    """v ↦ H v on flat vectors, and the dimension. `loss(params, x, y)` is a mean over examples."""
    total = sum(len(x) for x, _ in batches)
    dim = sum(p.numel() for p in params.values())

    def matvec(v: Tensor) -> Tensor:
        direction = trees.unflatten(v, params)
        out = torch.zeros_like(v)
        for x, y in batches:
            live = {k: p.detach().requires_grad_() for k, p in params.items()}
            with torch.enable_grad():
                gradient = dict(zip(live, _grad(loss(live, x, y), live), strict=True))
                product = _grad(trees.dot(gradient, direction), live)
            out += len(x) / total * torch.cat([p.detach().reshape(-1) for p in product])
        return out

    return matvec, dim


def _grad(value: Tensor, live: Params) -> tuple[Tensor, ...]:
    if not value.requires_grad:  # a loss that is constant, or linear, in every parameter
        return tuple(torch.zeros_like(p) for p in live.values())
    return torch.autograd.grad(value, list(live.values()), create_graph=True, materialize_grads=True)
