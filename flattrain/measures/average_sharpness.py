"""Average-case sharpness: mean rise of the loss under random perturbations of the parameters.

    E_ε [ L(w + ρ D ε) − L(w) ],      D = I, or diag|w| (adaptive)

    ε ~ N(0, I) (l2), or independent uniform on [−1, 1] (linf)

As implemented in the code of Andriushchenko et al. 2023 (arXiv 2302.07011), there with 20 draws. As ρ → 0
it is (ρ²/2) Var(ε) Tr(D H D), the variance being 1 or 1/3. For D = diag|w| that is the adaptive trace,
which the rescalings of a ReLU net that leave its function alone leave alone too.

`logits="normalised"` subtracts the class mean and divides by the ℓ2 norm, which is what the code does;
the formula in the paper is unverified.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from flattrain.core.perturbations import loss_of, scales, shifted
from flattrain.core.probes import direction, over_parameters
from flattrain.core.trace import mean_of_probes
from flattrain.ranges import Count, Positive, checked
from flattrain.types import Measure, Seen, Statistic


@checked
def average_sharpness(
    *,
    rho: Positive = 0.1,
    scale: Literal["plain", "adaptive"] = "adaptive",
    norm: Literal["l2", "linf"] = "l2",
    logits: Literal["raw", "normalised"] = "raw",
    probes: Count = 20,
) -> Measure:
    """Mean over `probes` draws of L(w + ρDε) − L(w); all trainable parameters are perturbed."""

    def statistic(seen: Seen, noise: Mapping[str, Tensor]) -> Statistic:
        loss, diagonal = loss_of(seen, logits), scales(seen.params, scale)
        base = loss(seen.params, seen.inputs, seen.target)
        rises = []
        for k in range(len(noise) // len(seen.params)):
            draw = {name: rho * _shaped(z, norm) for name, z in direction(noise, k, seen.params).items()}
            rises.append(loss(shifted(seen.params, diagonal, draw), seen.inputs, seen.target) - base)
        return {"rise": torch.stack(rises)}

    return Measure(
        "average_sharpness",
        statistic,
        lambda s: mean_of_probes(s["rise"]),
        f"mean rise of the loss of the {logits} logits over {probes} random perturbations of the "
        f"parameters, {scale}, "
        f"{'normal' if norm == 'l2' else 'uniform on [−1, 1]'} times ρ = {rho:g}",
        draws=lambda seen: over_parameters(seen.params, "normal", probes),
    )


def _shaped(z: Tensor, norm: str) -> Tensor:
    # 2Φ(z) − 1 = erf(z/√2) is uniform on [−1, 1] where z is standard normal.
    return z if norm == "l2" else torch.erf(z / 2**0.5)
