"""Roots of the Hessian of the softmax's log-partition, diag(p) − p pᵀ, with p = softmax z.

Exact, of rank K − 1: the Cholesky factor without the last column, which is zero. With the tails
s_j = Σ_{k≥j} p_k (Tanabe & Sagae 1992, for the multinomial distribution)

    L_jj = √(p_j s_{j+1} / s_j),   L_ij = −p_i √(p_j / (s_j s_{j+1}))   for i > j

A sketch takes L = diag(√p) − p √pᵀ, for which no K × K matrix is formed. Roots go through log p, because √p
has no gradient where p underflows.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def factor(outputs: Tensor) -> Tensor:
    """L (..., K, K − 1) at outputs (..., K)."""
    log_p = outputs.log_softmax(-1)
    tail = log_p.flip(-1).logcumsumexp(-1).flip(-1)
    own, here, after = log_p[..., :-1], tail[..., :-1], tail[..., 1:]
    # In logarithms nothing cancels: every tail is a sum of positive terms.
    diagonal = ((own + after - here) / 2).exp()
    column = (own - here - after) / 2
    below = (log_p[..., :, None] + column[..., None, :]).tril(-1).exp().tril(-1)
    return F.pad(torch.diag_embed(diagonal), (0, 0, 0, 1)) - below


def sketch(outputs: Tensor, noise: Tensor) -> Tensor:
    """L ε (..., K)."""
    log_p = outputs.log_softmax(-1)
    moved = (log_p / 2).exp() * noise
    return moved - log_p.exp() * moved.sum(-1, keepdim=True)


def trace_with(outputs: Tensor, weight: Tensor) -> Tensor:
    """Tr(W Wᵀ (diag p − p pᵀ)) of each row of outputs (N, K)."""
    # Σ_s p_s ‖w_s‖² − ‖Σ_s p_s w_s‖² = ⟨p, diag G − G p⟩ with G = W Wᵀ (K × K): few operations, because
    # beside a small net each one counts.
    p = outputs.softmax(-1)
    gram = weight @ weight.T
    return (p * torch.addmm(gram.diagonal(), p, gram, alpha=-1)).sum(-1)
