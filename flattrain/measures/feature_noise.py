"""Gaussian noise on the features of a layer, scaled by their length: what the loss gains.

    (1/n) Σ_i E_ε ℓ(φ_i + σ ‖φ_i‖ ε) − ℓ(φ_i),     ε standard normal, drawn anew for each example

With weight 1 the objective is the loss under the noise. To second order it is (σ²/2) κ for a linear layer
whose input is φ (κ: `measures.relative_flatness`), since E[εεᵀ] = I: the first order vanishes on average but
not in a draw. Its neighbour `measures.feature_robustness` rotates all examples alike, in ± pairs.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from flattrain.core.trace import mean_of_probes
from flattrain.ranges import Count, Positive, checked
from flattrain.types import Draw, Measure, Seen, Statistic


@checked
def feature_noise(*, layer: str = "head", sigma: Positive = 0.03, probes: Count = 1) -> Measure:
    """The gain of the loss under noise of σ‖φ‖ per coordinate, mean over `probes` draws."""

    def statistic(seen: Seen, noise: Mapping[str, Tensor]) -> Statistic:
        gains = []
        for epsilon in noise.values():

            def noisy(phi: Tensor, epsilon: Tensor = epsilon) -> Tensor:
                return phi + sigma * phi.square().sum(-1, keepdim=True).sqrt() * epsilon

            outputs = seen.run(seen.params, seen.inputs, {layer: noisy})
            gains.append(seen.criterion.mean(outputs, seen.target) - seen.loss)
        return {"gain": torch.stack(gains)}

    def draws(seen: Seen) -> dict[str, Draw]:
        shape = tuple(seen.taps[layer].input.shape)
        return {str(k): Draw("normal", shape, per_example=True) for k in range(probes)}

    return Measure(
        "feature_noise",
        statistic,
        lambda s: mean_of_probes(s["gain"]),
        f"mean gain of the loss under Gaussian noise on the features entering {layer!r}, of {sigma:g} times "
        "their length in each coordinate",
        layers=(layer,),
        draws=draws,
    )
