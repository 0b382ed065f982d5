"""X Xᵀ with the gradient (Ḡ + Ḡᵀ) X as one product, where autograd takes two."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _Gram(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x @ x.transpose(-1, -2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Tensor:
        (x,), (g,) = ctx.saved_tensors, cotangents
        return (g + g.transpose(-1, -2)) @ x


def gram_matrix(x: Tensor) -> Tensor:
    """X Xᵀ (..., n, n) of X (..., n, D)."""
    if not x.requires_grad:
        return x @ x.transpose(-1, -2)
    out: Tensor = _Gram.apply(x)
    return out
