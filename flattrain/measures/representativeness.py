"""Representativeness: how much of the generalisation gap a layer's features explain by their neighbourhoods.

    Rep(δ) = E ℓ(f(x), y) − (1/n) Σ_i E_ξ ℓ(tail(φ_i + ξ_i), y_i),      ξ_i = δ A φ_i

after Petzka et al. 2021: the training features φ_i with labels y_i, each spread by a kernel around it, stand
for the distribution, and Rep says by how much the risk exceeds the loss under that density. The kernel is
that of `measures.feature_robustness`, A Haar-orthogonal and the same for all examples of a draw: ξ_i has mean
0 and covariance (δ‖φ_i‖)² I/m. So with R(δ) the feature robustness, by definition,

    risk − training loss = Rep(δ) + R(δ)

The formula is ours, after the paper as we remember it; its own wording was not at hand and is not quoted. The
risk is estimated by held-out examples: its standard error, most often the larger part, is in the estimate,
beside that over draws of A.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from flattrain.core.trace import mean_of_probes
from flattrain.measures.feature_robustness import feature_robustness
from flattrain.measures.risk import risk
from flattrain.ranges import Count, Positive, checked
from flattrain.types import Contrast, Measure, Seen, Statistic


@checked
def representativeness(*, layer: str = "head", delta: Positive = 0.01, probes: Count = 20) -> Contrast:
    """Rep(δ) of the features that enter `layer`, over `probes` draws of A, each taken with both signs."""
    robustness = feature_robustness(layer=layer, delta=delta, probes=probes)
    words = (
        f"risk by the held-out examples less the mean training loss when the features φ entering {layer!r} "
        f"become φ + δAφ, δ = {delta:g}, over {probes} Haar-orthogonal A and their negatives"
    )
    return Contrast("representativeness", risk(), _perturbed(robustness), words)


def _perturbed(robustness: Measure) -> Measure:
    """The loss with the features perturbed. It keeps the name of the robustness, and with it its draws."""

    def statistic(seen: Seen, noise: Mapping[str, Tensor]) -> Statistic:
        return {**robustness.statistic(seen, noise), "loss": seen.loss}

    return replace(robustness, statistic=statistic, reduce=lambda s: mean_of_probes(s["loss"] + s["gain"]))
