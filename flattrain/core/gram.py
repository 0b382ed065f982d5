"""X Xᵀ, its diagonal and its eigenvalues, each with its gradient in X as one product.

X Xᵀ            (Ḡ + Ḡᵀ) X             where autograd takes two products
‖x_i‖²          2 ḡ_i x_i              where it takes powers and writes the squares down
eigenvalues     2 V diag(ḡ) Vᵀ X       without a matrix and its transpose in between
"""

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


def squared_rows(x: Tensor) -> Tensor:
    """‖x‖² (...) of the rows of X (..., D); without the squares in memory where nothing is differentiated."""
    return torch.linalg.vecdot(x, x) if x.requires_grad else torch.linalg.vector_norm(x, dim=-1).square()


class _GramEigenvalues(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh((x @ x.mT).to(torch.float64))
        return values.clamp(min=0), vectors.to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(inputs[0], output[1])
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Tensor:
        x, vectors = ctx.saved_tensors
        if torch.is_grad_enabled():  # differentiated again: the eigenvectors as a function of X
            vectors = torch.linalg.eigh((x @ x.mT).to(torch.float64))[1].to(x.dtype)
        g = (2 * cotangents[0]).to(x.dtype)[..., None, :]
        return (vectors * g) @ vectors.mT @ x


def gram_eigenvalues(x: Tensor) -> Tensor:
    """The eigenvalues (..., n) of X Xᵀ of X (..., n, D), by a decomposition in float64; no negative ones."""
    if not x.requires_grad:
        return torch.linalg.eigvalsh((x @ x.mT).to(torch.float64)).clamp(min=0)
    out: Tensor = _GramEigenvalues.apply(x)[0]
    return out
