"""Frobenius norm of the Gauss–Newton matrix of a net with one output, exactly.

At interpolation (zero residuals) the Gauss–Newton matrix *is* the Hessian. Its nonzero spectrum is that of
the n × n Gram matrix of per-example gradients, K_ij = (2/n) ⟨∇f_i, ∇f_j⟩ for squared error, and for
linear layers ⟨∇f_i, ∇f_j⟩ = Σ_l ⟨φ_i, φ_j⟩ ⟨δ_i, δ_j⟩ without ever forming a gradient.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from flattrain.core.eager import need_separable
from flattrain.ranges import Refused
from flattrain.types import Estimate, Measure, Seen, Statistic


def gram(seen: Seen) -> Tensor:
    """K (n, n) with the nonzero spectrum of the Gauss–Newton matrix; one output, squared error."""
    if seen.criterion.name != "squared_error" or seen.outputs.shape[-1] != 1:
        raise Refused("the Gauss–Newton Gram matrix needs one output and the loss squared_error")
    need_separable(seen, "gauss_newton_frobenius")
    layers = list(seen.taps.values())
    deltas = torch.autograd.grad(seen.outputs.sum(), [tap.output for tap in layers], create_graph=True)
    total = torch.zeros_like(layers[0].input @ layers[0].input.T)
    for tap, delta in zip(layers, deltas, strict=True):
        inner = tap.input @ tap.input.T
        total = total + (inner if tap.bias is None else inner + 1) * (delta @ delta.T)
    return 2 / len(total) * total


def _frobenius(seen: Seen, noise: Mapping[str, Tensor]) -> Statistic:
    return {"frobenius": gram(seen).square().sum().sqrt()}


def gauss_newton_frobenius() -> Measure:
    """‖G‖_F over all linear layers. A function of the whole data set: evaluate it in one batch."""
    return Measure(
        "gauss_newton_frobenius",
        _frobenius,
        lambda s: Estimate(s["frobenius"]),
        "Frobenius norm of the Gauss–Newton matrix (the Hessian, at interpolation)",
        layers=None,
        order=2,
    )
