"""Tr G of the Gauss–Newton matrix by one pull-back per example and column, for any network.

    Tr G = mean_i Σ_c ‖J_iᵀ L_i[:, c]‖²,   J_i = ∂f_i/∂θ,   S_i = L_i L_iᵀ the output Hessian

The number of `measures.gauss_newton_trace`, which takes it from the structure of the layers and refuses where
a normalisation ties examples together. Here f_i may depend on θ in whatever way, through other examples too,
as in the simplified BatchNorm of Wen et al. 2023, whose statistics run over the training set. n · C passes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from flattrain.core.losses import root_vectors
from flattrain.types import Estimate, Measure, Seen, Statistic


def _statistic(seen: Seen, noise: Mapping[str, Tensor]) -> Statistic:
    live = list(seen.params.values())
    total = torch.zeros_like(seen.loss)
    for vectors in root_vectors(seen, None, "pulled_back_trace"):
        for output, vector in zip(seen.outputs, vectors, strict=True):
            pulled = torch.autograd.grad(output, live, vector, retain_graph=True, materialize_grads=True)
            total = total + sum(part.square().sum() for part in pulled)
    return {"trace": total / len(seen.outputs)}


def pulled_back_trace() -> Measure:
    """Tr G over all trainable parameters; not a penalty: it leaves no graph."""
    return Measure(
        "pulled_back_trace",
        _statistic,
        lambda s: Estimate(s["trace"]),
        "trace of the Gauss–Newton matrix of the mean loss, one pull-back per example",
        order=2,
    )
