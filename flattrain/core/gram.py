"""X Xᵀ at half the price: one triangle of blocks, and the gradient (Ḡ + Ḡᵀ) X as one product."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

BLOCK = 192  # rows below which a plain product is as fast


def _product(x: Tensor) -> Tensor:
    n = x.shape[-2]
    if n <= BLOCK:
        return x @ x.transpose(-1, -2)
    upper, lower = x.split([n // 2, n - n // 2], -2)
    cross = upper @ lower.transpose(-1, -2)
    top = torch.cat([_product(upper), cross], -1)
    return torch.cat([top, torch.cat([cross.transpose(-1, -2), _product(lower)], -1)], -2)


class _Gram(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return _product(x)

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
        return _product(x)
    out: Tensor = _Gram.apply(x)
    return out
