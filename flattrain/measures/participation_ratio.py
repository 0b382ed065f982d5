"""Participation ratio of a spectrum: how many directions carry it.

    PR(λ) = (Σ λ)² / Σ λ² = (Tr C)² / ‖C‖_F²,       from 1 (one direction) to the dimension (all alike)

    participation_ratio     C the covariance of the features that enter a layer, over the examples
    local_dimensionality    C = J Jᵀ, J = ∂f/∂x: the covariance of the outputs when white noise perturbs one
                            input; the mean over examples

The second is the local dimensionality of Chen, Recanatesi & Shea-Brown (arXiv 2310.01770) as in summaries
of the paper; the mean over examples is our choice. Both ignore scale, so no bound on sharpness bounds
them. No eigenvalue is computed: traces suffice. Sums in float64.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from flattrain.core.jacobians import gram, input_jacobian
from flattrain.ranges import checked
from flattrain.types import Estimate, Measure, Seen, Statistic


def ratio(covariance: Tensor) -> Tensor:
    """(Tr C)² / ‖C‖_F² of symmetric matrices (…, D, D); nan for C = 0, which has no directions."""
    trace = covariance.diagonal(dim1=-2, dim2=-1).sum(-1)
    return trace.square() / covariance.square().sum((-2, -1))


@checked
def participation_ratio(*, layer: str = "head") -> Measure:
    """PR of the covariance (about the mean) of the features that enter `layer`."""

    def statistic(seen: Seen, noise: Mapping[str, Tensor]) -> Statistic:
        phi = seen.taps[layer].input.flatten(1).to(torch.float64)
        return {"moment": phi.T @ phi / len(phi), "mean": phi.mean(0)}

    def reduce(s: Statistic) -> Estimate:
        return Estimate(ratio(s["moment"] - torch.outer(s["mean"], s["mean"])))

    return Measure(
        "participation_ratio",
        statistic,
        reduce,
        f"participation ratio (Σλ)²/Σλ² of the covariance of the features entering {layer!r}",
        combine="examples",
        layers=(layer,),
    )


def local_dimensionality() -> Measure:
    """Mean over examples of PR(J Jᵀ), J = ∂f/∂x; from 1 to the number of outputs."""

    def statistic(seen: Seen, noise: Mapping[str, Tensor]) -> Statistic:
        return {"ratio": ratio(gram(input_jacobian(seen, "local_dimensionality"))).mean()}

    return Measure(
        "local_dimensionality",
        statistic,
        lambda s: Estimate(s["ratio"]),
        "mean over examples of the participation ratio of J Jᵀ, J the Jacobian of the outputs (logits) in "
        "the inputs, exact",
        combine="examples",
        order=2,
    )
