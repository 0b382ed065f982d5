"""Concave spectral penalties Tr φ(F) of a positive semi-definite F, with φ(0) = 0.

soft     x / (x + λ)          the soft rank; λ → 0 counts directions, λ → ∞ (times λ) is the trace
logdet   log(1 + x / λ)       the Laplace evidence's log-determinant; at least the soft rank
power    x^q, 0 < q < 1
trace    x
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

Kind = Literal["soft", "logdet", "power", "trace"]


class Concave(NamedTuple):
    """φ, elementwise on eigenvalues."""

    kind: Kind
    lam: float
    power: float

    def __call__(self, x: Tensor) -> Tensor:
        if self.kind == "soft":
            return x / (x + self.lam)
        if self.kind == "logdet":
            return torch.log1p(x / self.lam)
        # The derivative of x^q at 0 is infinite; a zero eigenvalue adds nothing and pulls nowhere.
        return x if self.kind == "trace" else x.where(x > 0, 1.0).pow(self.power) * (x > 0)

    @property
    def words(self) -> str:
        return {
            "soft": f"soft rank of the Fisher at λ = {self.lam:g}",
            "logdet": f"log det(I + F/λ) of the Fisher at λ = {self.lam:g}",
            "power": f"Tr F^{self.power:g} of the Fisher",
            "trace": "trace of the Fisher",
        }[self.kind]


def eigenvalues(matrix: Tensor) -> Tensor:
    """Those of a positive semi-definite matrix, in float64; rounding's negative ones are zeros.

    By `eigvalsh`: its gradient has no gaps between eigenvalues in the denominator, so it is finite for
    repeated ones, where that of eigenvectors is not.
    """
    return torch.linalg.eigvalsh(matrix.to(torch.float64)).clamp(min=0)


def of_gram(phi: Concave, gram: Tensor) -> Tensor:
    """Tr φ(K) of a Gram matrix K, by its Cholesky factor where φ allows."""
    if phi.kind == "trace":
        return gram.diagonal().sum()
    if phi.kind == "power":
        values = eigenvalues(gram)
        # Eigenvalues below rounding are zeros; x^q would blow them up.
        return phi(values.where(values > len(values) * 1e-15 * values[-1].detach(), 0.0)).sum()
    if phi.kind == "logdet":
        # log det(K + λ) − n log λ
        return 2 * (_root(gram.to(torch.float64), phi.lam).diagonal() / phi.lam**0.5).log().sum()
    # n − λ Tr (K + λ)⁻¹
    rank: Tensor = _SoftRank.apply(gram, phi.lam)[0]
    return rank


def _root(gram: Tensor, lam: float) -> Tensor:
    """The Cholesky factor of K + λ."""
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    factor: Tensor = torch.linalg.cholesky(gram + lam * eye)
    return factor


class _SoftRank(torch.autograd.Function):
    """Tr K (K + λ)⁻¹ with its gradient λ (K + λ)⁻², one product where autograd solves again.

    The inverse is taken in float64; the product for the gradient in the precision of K.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(gram: Tensor, lam: float) -> tuple[Tensor, Tensor]:
        inverse = torch.cholesky_inverse(_root(gram.to(torch.float64), lam))
        rank = gram.shape[-1] - lam * inverse.diagonal(dim1=-2, dim2=-1).sum(-1)
        return rank, inverse.to(gram.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: tuple[Tensor, Tensor]) -> None:
        ctx.lam = inputs[1]
        ctx.save_for_backward(inputs[0], output[1])
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, None]:
        gram, inverse = ctx.saved_tensors
        if torch.is_grad_enabled():  # differentiated again: the inverse as a function of K
            inverse = torch.cholesky_inverse(_root(gram, ctx.lam))
        return (cotangents[0] * ctx.lam).to(gram.dtype) * (inverse @ inverse), None
