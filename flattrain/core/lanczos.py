"""The extreme eigenvalues of a symmetric operator by Lanczos with full reorthogonalisation.

Stops on the residual ‖A v − θ v‖ = |β_k s_k| (Paige 1972), not on the change between iterations, which says
nothing about the error: some eigenvalue lies within the residual of θ, and near an isolated one the error is
of the order of the residual squared over the gap. So a residual of 3e-2 gives an error of about 1e-3.

The basis keeps the dtype of the operator (float32 for a float32 net); the tridiagonal matrix and its
eigenvalues are in float64. A vector is made orthogonal to the two before it, then to all, and to all a second
time only when the first pass cancelled more than 1 − 1/√2 of it ("twice is enough", Kahan and Parlett).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from flattrain.ranges import Refused
from flattrain.types import Operator


class NotFinite(Refused):
    """A product of the operator has inf or nan in it."""


class Eigenvalue(NamedTuple):
    value: float
    residual: float  # ‖A v − θ v‖ for the Ritz pair
    products: int
    converged: bool
    vector: Tensor  # v (dim,), of norm 1


class Tridiagonal(NamedTuple):
    """T = Qᵀ A Q after k steps, with the rows of Q in `basis`."""

    diagonal: Tensor  # (k,)
    below: Tensor  # (k − 1,)
    basis: Tensor  # (k, dim)
    left_over: float  # β_k: 0 when the Krylov space is exhausted

    def eigh(self) -> tuple[Tensor, Tensor]:
        """The eigenvalues of T ascending, and its eigenvectors as columns."""
        matrix = torch.diag(self.diagonal) + torch.diag(self.below, 1) + torch.diag(self.below, -1)
        values, vectors = torch.linalg.eigh(matrix)
        return values, vectors


def tridiagonalise(
    operator: Operator,
    start: Tensor,
    steps: int,
    stop: Callable[[Tridiagonal], bool] = lambda so_far: False,
) -> Tridiagonal:
    """Lanczos from `start` (dim,), in its dtype, for `steps` products or until `stop` or exhaustion."""
    dim = len(start)
    steps = min(dim, steps)
    basis = torch.empty(min(steps, 16), dim, dtype=start.dtype, device=start.device)
    basis[0] = start / start.norm()
    tiny = 30 * torch.finfo(start.dtype).eps
    alpha, beta = torch.zeros(steps, dtype=torch.float64), torch.zeros(steps, dtype=torch.float64)
    largest = 0.0  # ‖A q‖ so far: what rounding is measured against
    for k in range(steps):
        w = operator(basis[k])
        size = float(w.norm())
        if not size < float("inf"):
            raise NotFinite(
                f"product {k + 1} of the operator is not finite; look for inf or nan in loss or parameters"
            )
        largest = max(largest, size)
        alpha[k] = w @ basis[k]
        w = w - alpha[k].to(w.dtype) * basis[k]
        if k:
            w = w - beta[k - 1].to(w.dtype) * basis[k - 1]
        known = basis[: k + 1]
        before = float(w.norm())
        w = w - known.T @ (known @ w)
        after = float(w.norm())
        if after < before / 2**0.5:
            w = w - known.T @ (known @ w)
            after = float(w.norm())
        exhausted = after <= tiny * largest
        beta[k] = 0.0 if exhausted else after
        so_far = Tridiagonal(alpha[: k + 1], beta[:k], known, float(beta[k]))
        if exhausted or k + 1 == steps or stop(so_far):
            return so_far
        if k + 1 == len(basis):
            basis = torch.cat([basis, torch.empty(min(len(basis), steps - k - 1), dim).to(basis)])
        basis[k + 1] = w / after
    raise AssertionError("unreachable")


def largest(
    operator: Operator, generator: Generator, *, tolerance: float = 1e-3, max_products: int = 200
) -> Eigenvalue:
    """The largest algebraic eigenvalue, to ‖A v − θ v‖ ≤ tolerance · |θ|."""

    def pair(so_far: Tridiagonal) -> tuple[float, float, Tensor]:
        values, vectors = so_far.eigh()
        return float(values[-1]), so_far.left_over * abs(float(vectors[-1, -1])), vectors[:, -1]

    def good(so_far: Tridiagonal) -> bool:
        value, residual, _ = pair(so_far)
        return residual <= tolerance * abs(value)

    if operator.dim < 1 or max_products < 1:
        raise Refused(
            f"Lanczos needs max_products >= 1 and parameters, got {max_products} and {operator.dim}"
        )
    start = torch.randn(operator.dim, generator=generator, dtype=torch.float64)
    found = tridiagonalise(operator, start.to(operator.device, operator.dtype), max_products, good)
    value, residual, weights = pair(found)
    products = len(found.diagonal)
    vector = weights.to(found.basis) @ found.basis
    converged = products == operator.dim or residual <= tolerance * abs(value)
    return Eigenvalue(value, residual, products, converged, vector)


def smallest(
    operator: Operator, generator: Generator, *, tolerance: float = 1e-3, max_products: int = 200
) -> Eigenvalue:
    """The smallest algebraic eigenvalue: minus the largest of −A."""
    turned = replace(operator, matvec=lambda v: -operator(v))
    found = largest(turned, generator, tolerance=tolerance, max_products=max_products)
    return found._replace(value=-found.value)


def top_ritz_vector(product: Callable[[Tensor], Tensor], start: Tensor, products: int) -> Tensor:
    """v (dim,), ‖v‖ = 1, of the largest vᵀAv in the Krylov space of `start` after that many products.

    Nothing is decided on the way, so that `torch.func.vmap` can stack it: every vector is made orthogonal to
    the two before it, then once to all. Once the space is exhausted the rest of the basis is zeros, and its
    places in the tridiagonal matrix lie below every eigenvalue.
    """
    dim = len(start)
    tiny, small = 30 * torch.finfo(start.dtype).eps, torch.finfo(start.dtype).tiny
    q, size = start, start.norm()
    alive, largest = size > 0, torch.zeros_like(size)
    rows: list[Tensor] = []
    diagonal, below, kept = [], [], []
    for _ in range(min(products, dim)):
        q = torch.where(alive, q / size.where(alive, 1.0), 0.0)
        rows.append(q)
        w = product(q)
        diagonal.append(w @ q)
        kept.append(alive)
        largest = torch.maximum(largest, w.norm())
        for near in (rows[-2:], rows):  # vector by vector: a matrix of them would be copied for each product
            overlaps = [r @ w for r in near]
            for r, overlap in zip(near, overlaps, strict=True):
                w = w - overlap * r
        size = w.norm()
        alive = alive & (size > tiny * largest)
        below.append(torch.where(alive, size, 0.0))
        q = w
    lowest = -2 * largest - small
    middle = torch.where(torch.stack(kept), torch.stack(diagonal), lowest).double()
    beside = torch.stack(below)[:-1].double()
    _, vectors = torch.linalg.eigh(torch.diag(middle) + torch.diag(beside, 1) + torch.diag(beside, -1))
    v = vectors[:, -1].to(start.dtype) @ torch.stack(rows)
    return v / v.norm()
