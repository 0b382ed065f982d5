"""Logistic losses: roots of their output Hessian, and the one with smoothed labels.

logistic            S = diag(σ(z) σ(−z)), the mean over outputs
smoothed logistic   ℓ = −(1 − p) log σ(yz) − p log σ(−yz) with y = ±1 and p = 0.2,   S = σ(z) σ(−z)
                    (Wen et al. 2023, Appendix A.5, the weights of its terms the right way round);
                    smallest at z = ± log((1 − p)/p), where S = p(1 − p)
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

SMOOTHING = 0.2  # p, that of Wen et al. 2023


def binary_root(outputs: Tensor) -> Tensor:
    log_variance = F.logsigmoid(outputs) + F.logsigmoid(-outputs)
    return (log_variance / 2).exp() / outputs.shape[-1] ** 0.5


def binary_trace_with(outputs: Tensor, weight: Tensor) -> Tensor:
    p = outputs.sigmoid()
    return (p * (1 - p) / outputs.shape[-1]) @ weight.square().sum(-1)


def smoothed(outputs: Tensor, target: Tensor) -> Tensor:
    margin = outputs * target.reshape(outputs.shape)
    # In softplus: logsigmoid has no forward-mode second derivative.
    return ((1 - SMOOTHING) * F.softplus(-margin) + SMOOTHING * F.softplus(margin)).mean()
