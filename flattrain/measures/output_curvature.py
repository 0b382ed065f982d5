"""How curved the loss is in the outputs: mean over examples of λ_max(S_i), S_i = ∇²_z ℓ_i.

A constant for squared errors, and for cross entropy at most 1/2 and going to 0 as the net grows confident:
the part of a small Hessian that is confidence and not the network (G = mean J_iᵀ S_i J_i). λ_max of the
Hessian divided by it is the sharpness with that part taken out.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from flattrain.core.losses import output_root
from flattrain.types import Estimate, Measure, Seen, Statistic


def _statistic(seen: Seen, noise: Mapping[str, Tensor]) -> Statistic:
    root = output_root(seen, "output_curvature").to(torch.float64)
    top = torch.linalg.eigvalsh(root @ root.mT)[..., -1]
    return {"top": top.mean().to(seen.outputs.dtype)}


def output_curvature() -> Measure:
    """mean λ_max of the Hessian of each example's loss in the outputs."""
    return Measure(
        "output_curvature",
        _statistic,
        lambda s: Estimate(s["top"]),
        "mean over examples of the top eigenvalue of the Hessian of the loss in the outputs",
    )
