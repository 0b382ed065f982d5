"""Class-distance-normalised variance of a layer's features: how far within-class variability has collapsed.

    NCC = mean over pairs of classes c ≠ c' of (V_c + V_c') / (2 ‖μ_c − μ_c'‖²)

with μ_c the mean and V_c = mean ‖φ − μ_c‖² the variance of the features of class c; 0 is full collapse
(NC1). As implemented in the code of Han et al. (arXiv 2509.17738).

Everything follows from three class-wise means over all examples, n_c/n, Σ_c φ/n and Σ_c ‖φ‖²/n, so
batches combine exactly. V_c = mean ‖φ‖² − ‖μ_c‖² loses what is smaller than 1e-16 ‖φ‖² (sums are in
float64). Classes without examples are left out; with fewer than two classes there is no pair, and the
value is nan.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from flattrain.core.labels import classes
from flattrain.ranges import checked
from flattrain.types import Estimate, Measure, Seen, Statistic


def _reduce(s: Statistic) -> Estimate:
    present = s["share"] > 0
    share = torch.where(present, s["share"], torch.ones_like(s["share"]))
    mean = s["sum"] / share[:, None]
    variance = s["square"] / share - mean.square().sum(-1)
    distance = (mean[:, None] - mean[None, :]).square().sum(-1)
    same = torch.eye(len(share), dtype=torch.bool, device=share.device)
    pairs = present[:, None] & present[None, :] & ~same
    quotient = (variance[:, None] + variance[None, :]) / torch.where(pairs, 2 * distance, 1)
    return Estimate(torch.where(pairs, quotient, 0).sum() / pairs.sum())


@checked
def neural_collapse(*, layer: str = "head") -> Measure:
    """NCC of the features that enter `layer`."""

    def statistic(seen: Seen, noise: Mapping[str, Tensor]) -> Statistic:
        phi = seen.taps[layer].input.flatten(1).to(torch.float64)
        labels = classes(seen, "neural_collapse")
        count = max(seen.outputs.shape[1], 2)
        member = (labels[:, None] == torch.arange(count, device=phi.device)).to(phi.dtype)
        return {
            "share": member.mean(0),
            "sum": member.T @ phi / len(phi),
            "square": member.T @ phi.square().sum(-1) / len(phi),
        }

    return Measure(
        "neural_collapse",
        statistic,
        _reduce,
        "class-distance-normalised variance: mean over pairs of classes of (V + V') / (2 ‖μ − μ'‖²) of the "
        f"features entering {layer!r}",
        combine="examples",
        layers=(layer,),
    )
