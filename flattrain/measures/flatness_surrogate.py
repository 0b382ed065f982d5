"""The surrogate of relative flatness against which the code released with arXiv 2509.17738 trains.

    S = ‖W‖_F² · mean_i (1 − ‖p_i‖²),    p_i = softmax(z_i / τ)

W is the weight of the head and z its outputs. At τ = 1, and where every feature vector has length one, it is
the simplified κ̂ = ‖W‖_F² Tr H. Features of networks are not of length one: the code divides them by their
length in this expression alone, so that neither it nor its gradient sees that length, and takes τ = 2. What
is left grows with the norm of the head, falls with confidence, and is at most ‖W‖_F² (1 − 1/K). The code
subtracts it from the loss, as `weight: -0.01` does, under a cap on ‖W‖_F.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from flattrain.core.functional import tapped
from flattrain.core.labels import logits_and_classes, mean_counted, over_counted
from flattrain.ranges import Positive, checked
from flattrain.types import Estimate, Measure, Seen, Statistic


@checked
def flatness_surrogate(*, layer: str = "head", temperature: Positive = 2.0) -> Measure:
    """‖W‖_F² mean (1 − Σ_k p_k²) at p = softmax(z / temperature), W the weight of `layer`."""

    def statistic(seen: Seen, noise: Mapping[str, Tensor]) -> Statistic:
        z, _ = logits_and_classes(seen, "flatness_surrogate")
        impurity = 1 - (z / temperature).softmax(-1).square().sum(-1)
        return {**over_counted(impurity, seen), "squares": tapped(seen, layer).weight.square().sum()}

    return Measure(
        "flatness_surrogate",
        statistic,
        lambda s: Estimate(s["squares"] * mean_counted(s).value),
        f"squared norm of the weight of {layer!r} times the mean of 1 − Σ p² at temperature {temperature:g}",
        combine="examples",
        layers=(layer,),
    )
