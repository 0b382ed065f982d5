"""Tr ∇²L without sampling: one Hessian-vector product per parameter.

    Tr H = Σ_k e_kᵀ H e_k

The oracle for closed forms, on nets of some thousand parameters. `hessian_trace` estimates it on larger ones.
"""

from __future__ import annotations

import torch
from torch import Generator

from flattrain.types import Estimate, Operator, Spectral


def exact_hessian_trace() -> Spectral:
    """The trace by as many products as there are parameters, each over the whole data set."""

    def estimate(operator: Operator, generator: Generator) -> Estimate:
        unit = torch.zeros(operator.dim, dtype=operator.dtype, device=operator.device)
        total = 0.0
        for k in range(operator.dim):
            unit[k] = 1
            total += float(operator(unit)[k])
            unit[k] = 0
        return Estimate(total)

    return Spectral(
        "exact_hessian_trace",
        estimate,
        "trace of the Hessian of the mean loss, one Hessian-vector product per parameter",
    )
