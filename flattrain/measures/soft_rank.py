"""Soft rank of the Fisher in its Kronecker-factored approximation.

    rank_λ(F) = Tr F (F + λI)⁻¹ ≈ Σ_layers Σ_ij a_i b_j / (a_i b_j + λ)

with a, b the eigenvalues of the layer's factors A and B (core.kfac). λ is the Tikhonov weight of the mean
loss: PyTorch's weight_decay. Between λ → 0 (hard rank) and λ → ∞ (λ · rank → Tr F).

Not linear in the data: the mean over batches of the soft rank is *below* the soft rank of the whole set
(Jensen), so evaluation averages the factors, and a penalty on batches is a biased-low one. The sketch is
biased low for the same reason. Eigenvalues by `eigvalsh` in float64; their gradient needs no eigenvectors
of separated eigenvalues, so it is finite for repeated ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from flattrain.core.kfac import factors, vectors
from flattrain.ranges import Positive, checked
from flattrain.types import Draw, Estimate, Measure, Seen, Statistic


def soft_rank_of(a: Tensor, b: Tensor, lam: float) -> Tensor:
    """Σ_ij a_i b_j / (a_i b_j + λ) for two symmetric positive semi-definite factors."""
    spectrum = torch.outer(_eigenvalues(a), _eigenvalues(b))
    return (spectrum / (spectrum + lam)).sum()


def _smaller_gram(rows: Tensor, n: int) -> Tensor:
    """XᵀX/n or XXᵀ/n, whichever is smaller: they differ by zero eigenvalues, which a soft rank ignores."""
    return (rows @ rows.T if len(rows) < rows.shape[1] else rows.T @ rows) / n


def _eigenvalues(matrix: Tensor) -> Tensor:
    # Rounding leaves eigenvalues of −ε‖F‖; they are zeros of a positive semi-definite matrix.
    return torch.linalg.eigvalsh(matrix.to(torch.float64)).clamp(min=0)


@checked
def soft_rank(
    *,
    lam: Positive = 1e-2,
    layers: tuple[str, ...] | None = None,
    columns: Literal["exact", "sketch"] = "exact",
) -> Measure:
    """KFAC soft rank at λ = `lam` over `layers` (None: every linear layer)."""

    def statistic(seen: Seen, noise: Mapping[str, Tensor]) -> Statistic:
        out = {}
        for name, (a, b) in factors(seen, noise if columns == "sketch" else None).items():
            out[f"{name}.A"], out[f"{name}.B"] = a, b
        return out

    def reduce(s: Statistic) -> Estimate:
        names = [key.removesuffix(".A") for key in s if key.endswith(".A")]
        ranks = [soft_rank_of(s[f"{n}.A"], s[f"{n}.B"], lam) for n in names]
        return Estimate(torch.stack(ranks).sum())

    def on_batch(seen: Seen, noise: Mapping[str, Tensor]) -> Tensor:
        pairs = vectors(seen, noise if columns == "sketch" else None).values()
        ranks = [
            soft_rank_of(_smaller_gram(phi, len(phi)), _smaller_gram(g, len(phi)), lam) for phi, g in pairs
        ]
        return torch.stack(ranks).sum()

    def draws(seen: Seen) -> dict[str, Draw]:
        if columns == "exact":
            return {}
        return {"sketch": Draw("rademacher", tuple(seen.outputs.shape), per_example=True)}

    return Measure(
        "soft_rank",
        statistic,
        reduce,
        f"soft rank of the Fisher at λ = {lam:g}, KFAC per layer, {columns} output factor",
        layers=None if layers is None else tuple(layers),
        on_batch=on_batch,
        draws=draws,
        order=2,
    )
