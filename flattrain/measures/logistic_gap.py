"""The generalisation gap of ridge logistic regression on the cube, and its first-order estimates.

With R the risk of the population (`core.logistic_cube`), R_n the training loss, θ̂ the trained weights, θ_λ
the population's minimiser, H and C Hessian and covariance there, A = (H + λI)⁻¹ and
g_n = ∇R_n(θ_λ) − ∇R(θ_λ), to first order in 1/n (our derivation, consistent with the abstract of arXiv
2506.17809):

    tic         Tr(C A)/n                 the gap to first order
    rank        rank_λ(H)/n               what tic is where C = H
    kappa_rank  (Tr C/Tr H) rank_λ(H)/n   what tic is where C is proportional to H

    remainder   n (G − g_nᵀ A g_n),   G = R(θ̂) − R(θ_λ) + R_n(θ_λ) − R_n(θ̂)
    gap         G − g_nᵀ A g_n + tic

G has the mean of the gap R(θ̂) − R_n(θ̂), since R_n(θ_λ) has mean R(θ_λ); and E g_nᵀ A g_n = tic exactly. So
the mean of `gap` is that of the gap, and the mean of `remainder` n times what tic leaves of it, with the
noise of first order taken out of both: its standard deviation falls as n^(−1/2), where that of n times the
gap grows as √n.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from flattrain.core import logistic_cube as cube
from flattrain.ranges import Positive, Refused, checked
from flattrain.types import Estimate, Measure, Seen, Statistic

Kind = Literal["gap", "remainder", "tic", "rank", "kappa_rank"]
_WORDS = {
    "gap": "risk less training loss, by control variates with the same mean",
    "remainder": "n times what the regularised Takeuchi criterion of the population leaves of the gap",
    "tic": "regularised Takeuchi criterion of the population",
    "rank": "soft rank of the population's Hessian over n",
    "kappa_rank": "Tr C/Tr H times the soft rank of the population's Hessian over n",
}


def _value(kind: Kind, lam: float, x: Tensor, y: Tensor, theta: Tensor) -> Tensor:
    n, at = len(x), cube.minimum(x.shape[1], lam)
    inverse = torch.linalg.inv(at.hessian + lam * torch.eye(x.shape[1], dtype=torch.float64))
    tic, rank = (at.covariance * inverse).sum() / n, (at.hessian * inverse).sum() / n
    if kind == "tic":
        return tic
    if kind in ("rank", "kappa_rank"):
        return rank if kind == "rank" else at.covariance.trace() / at.hessian.trace() * rank

    def training_loss(w: Tensor) -> Tensor:
        z = x @ w
        return (F.softplus(z) - y * z).mean()

    gap = cube.risk(theta) - cube.risk(at.theta) + training_loss(at.theta) - training_loss(theta)
    slope = x.T @ ((x @ at.theta).sigmoid() - y) / n - at.gradient
    left = gap - slope @ inverse @ slope
    return n * left if kind == "remainder" else left + tic


@checked
def logistic_gap(
    *, kind: Literal["gap", "remainder", "tic", "rank", "kappa_rank"] = "gap", lam: Positive = 1e-2
) -> Measure:
    """One of the five at λ = `lam`, the weight decay of the training; of a linear model without a bias."""

    def statistic(seen: Seen, noise: Mapping[str, Tensor]) -> Statistic:
        weights = list(seen.params.values())
        if seen.criterion.name != "binary_cross_entropy" or [p.shape[0] for p in weights] != [1]:
            raise Refused("logistic_gap needs binary_cross_entropy and a linear model without a bias")
        x, y, theta = (t.detach().to("cpu", torch.float64) for t in (seen.inputs, seen.target, weights[0][0]))
        return {"value": _value(kind, lam, x, y.reshape(-1), theta)}

    return Measure(
        "logistic_gap",
        statistic,
        lambda s: Estimate(s["value"]),
        f"{_WORDS[kind]}, logistic regression on the cube, at λ = {lam:g}",
        combine="whole",
    )
