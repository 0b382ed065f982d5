"""‖∇²L‖_F of the Hessian of the mean loss, by probes.

    ‖H‖_F² = E ‖H z‖²,   z with independent ±1 entries

The root of the mean m of the squares, with the standard error s/(2 √m) of the delta method from the standard
error s of m; the root is biased low by about s²/(8 m^1.5).
"""

from __future__ import annotations

import torch
from torch import Generator

from flattrain.core.trace import of_probes, signs
from flattrain.ranges import Count, checked
from flattrain.types import Estimate, Operator, Spectral


@checked
def hessian_frobenius(*, probes: Count = 20) -> Spectral:
    """‖∇²L‖_F from `probes` Hessian-vector products over the whole data set."""

    def estimate(operator: Operator, generator: Generator) -> Estimate:
        squares = [operator(signs(operator, generator)).double().square().sum() for _ in range(probes)]
        found = of_probes(torch.stack(squares), probes)
        root = float(found.value) ** 0.5
        return Estimate(root, float(found.standard_error) / (2 * root) if root > 0 else 0.0)

    return Spectral(
        "hessian_frobenius",
        estimate,
        f"Frobenius norm of the Hessian of the mean loss, root of the mean of {probes} probes ‖Hz‖²",
    )
