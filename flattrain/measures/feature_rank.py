"""Effective rank of a layer's input features: exp of the entropy of the normalised singular values.

    σ̄_k = σ_k / Σ σ,   rank = exp(−Σ σ̄_k log σ̄_k)              (Roy & Vetterli 2007)

The singular values are those of the n × D feature matrix, the roots of the eigenvalues of its second moment.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from flattrain.ranges import checked
from flattrain.types import Estimate, Measure, Seen, Statistic


@checked
def feature_rank(*, layer: str = "head") -> Measure:
    """Effective rank of the features that enter `layer`."""

    def statistic(seen: Seen, noise: Mapping[str, Tensor]) -> Statistic:
        phi = seen.taps[layer].input.flatten(1).to(torch.float64)
        return {"moment": phi.T @ phi / len(phi)}

    def reduce(s: Statistic) -> Estimate:
        values = torch.linalg.eigvalsh(s["moment"])
        # Eigenvalues below the rounding of the largest are zeros; their roots would not look like it.
        values = values[values > len(values) * torch.finfo(values.dtype).eps * values[-1]].sqrt()
        p = values / values.sum()
        return Estimate(torch.exp(-(p * p.log()).sum()))

    return Measure(
        "feature_rank",
        statistic,
        reduce,
        f"effective rank (exp-entropy of singular values) of the features entering {layer!r}",
        combine="examples",
        layers=(layer,),
    )
