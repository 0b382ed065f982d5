"""Norms of the input–output Jacobian J(x) = ∂f/∂x (K × D): how much the outputs move with the inputs.

    mean_spectral           (1/n) Σ_i ‖J(x_i)‖₂
    max_spectral            max_i ‖J(x_i)‖₂         a lower bound on the Lipschitz constant of f
    mean_squared_frobenius  (1/n) Σ_i ‖J(x_i)‖_F²

Exact: K pullbacks give J of every example, and ‖J‖₂² is the top eigenvalue of J Jᵀ (K × K, in float64).
MacDonald, Valmadre & Lucey (arXiv 2305.14683) tie the Jacobian norm over the training sample to sharpness.
Mean and maximum can move in opposite directions in one run: say which before looking.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from flattrain.core.jacobians import gram
from flattrain.core.jacobians import input_jacobian as jacobian
from flattrain.core.roots import root
from flattrain.ranges import checked
from flattrain.types import Estimate, Measure, Seen, Statistic

_WORDS = {
    "mean_spectral": "mean over examples of the spectral norm",
    "max_spectral": "maximum over examples of the spectral norm",
    "mean_squared_frobenius": "mean over examples of the squared Frobenius norm",
}


def spectral_norms(gram: Tensor) -> Tensor:
    """σ_max(J) per example (n,), from J Jᵀ (n, K, K)."""
    return root(torch.linalg.eigvalsh(gram)[..., -1])


@checked
def input_jacobian(
    *, norm: Literal["mean_spectral", "max_spectral", "mean_squared_frobenius"] = "mean_spectral"
) -> Measure:
    """One of the three norms of ∂f/∂x over the examples; f are the outputs before any softmax."""

    def statistic(seen: Seen, noise: Mapping[str, Tensor]) -> Statistic:
        squared = gram(jacobian(seen, "input_jacobian"))
        if norm == "mean_squared_frobenius":
            return {"norm": squared.diagonal(dim1=-2, dim2=-1).sum(-1).mean()}
        each = spectral_norms(squared)
        return {"norm": each if norm == "max_spectral" else each.mean()}

    return Measure(
        "input_jacobian",
        statistic,
        lambda s: Estimate(s["norm"].max() if norm == "max_spectral" else s["norm"]),
        f"{_WORDS[norm]} of the Jacobian of the outputs (logits) in the inputs, exact",
        combine="rows" if norm == "max_spectral" else "examples",
        order=2,
    )
