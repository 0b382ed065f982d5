"""Tr ∇²L over all trainable parameters, by Hutchinson's probes.

    Tr H = E zᵀ H z,  z with independent ±1 entries           (Hutchinson 1990)

Each probe is one Hessian-vector product on the graph of the shared forward pass. The standard error comes
from the spread over probes; with one probe there is none. As a penalty the estimate is unbiased in value
and in gradient, because z does not depend on the parameters.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from flattrain.core import trees
from flattrain.core.trace import mean_of_probes
from flattrain.ranges import Count, checked
from flattrain.types import Draw, Measure, Seen, Statistic


def _statistic(seen: Seen, noise: Mapping[str, Tensor]) -> Statistic:
    live = list(seen.params.values())
    gradient = torch.autograd.grad(seen.loss, live, create_graph=True, materialize_grads=True)
    quadratic = []
    for k in range(len(noise) // len(live)):
        z = {name: noise[f"{k}.{name}"] for name in seen.params}
        slope = trees.dot(dict(zip(z, gradient, strict=True)), z)
        if not slope.requires_grad:  # a loss without curvature anywhere
            quadratic.append(torch.zeros_like(seen.loss))
            continue
        product = torch.autograd.grad(slope, live, create_graph=True, materialize_grads=True)
        quadratic.append(trees.dot(dict(zip(z, product, strict=True)), z))
    return {"quadratic": torch.stack(quadratic)}


@checked
def hessian_trace(*, probes: Count = 1) -> Measure:
    """Tr ∇²L with `probes` Rademacher probes; cost per probe about 3.5 plain steps as a penalty."""
    return Measure(
        "hessian_trace",
        _statistic,
        lambda s: mean_of_probes(s["quadratic"]),
        f"trace of the Hessian of the mean loss, Hutchinson with {probes} Rademacher probes",
        draws=lambda seen: {
            f"{k}.{name}": Draw("rademacher", tuple(p.shape))
            for k in range(probes)
            for name, p in seen.params.items()
        },
        order=3,
    )
