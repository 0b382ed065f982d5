"""The extreme eigenvalue of a symmetric operator by Lanczos with full reorthogonalisation.

Stops on the residual ‖A v − θ v‖ = |β_k s_k| (Paige), not on the change between iterations, which says
nothing about the error: the true eigenvalue nearest to θ is within the residual.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Generator, Tensor


class Eigenvalue(NamedTuple):
    value: float
    residual: float  # ‖A v − θ v‖ for the Ritz pair
    products: int
    converged: bool


def largest(
    matvec: Callable[[Tensor], Tensor],
    dim: int,
    generator: Generator,
    *,
    tolerance: float = 1e-3,
    max_products: int = 200,
    dtype: torch.dtype = torch.float64,
) -> Eigenvalue:
    """The largest algebraic eigenvalue, to ‖A v − θ v‖ ≤ tolerance · |θ|."""
    steps = min(dim, max_products)
    q = torch.randn(dim, generator=generator, dtype=torch.float64)
    basis = [q / q.norm()]
    alpha: list[Tensor] = []
    beta: list[Tensor] = []
    theta, residual = torch.tensor(0.0), float("inf")
    for k in range(steps):
        w = matvec(basis[k].to(dtype)).to(torch.float64)
        scale = float(w.norm())
        alpha.append(w @ basis[k])
        known = torch.stack(basis)
        for _ in range(2):  # twice is enough (Kahan, Parlett)
            w = w - known.T @ (known @ w)
        beta.append(w.norm())
        off = torch.stack(beta[:-1]) if k else torch.zeros(0, dtype=torch.float64)
        tri = torch.diag(torch.stack(alpha)) + torch.diag(off, 1) + torch.diag(off, -1)
        values, vectors = torch.linalg.eigh(tri)
        theta = values[-1]
        residual = float(beta[-1] * vectors[-1, -1].abs())
        exhausted = float(beta[-1]) <= 1e-12 * max(scale, 1e-300)
        if residual <= tolerance * abs(float(theta)) or exhausted:
            return Eigenvalue(float(theta), residual, k + 1, True)
        basis.append(w / beta[-1])
    return Eigenvalue(float(theta), residual, steps, steps == dim)
