"""What the code released with arXiv 2509.17738 plots for relative flatness in its grokking study.

    ‖W‖_F² · mean_i (‖φ_i1‖² + ‖φ_i2‖²) (1 − ‖p_i‖²),    p_i = softmax(z_i1 ⊙ z_i2)

for sequences with two answers, φ_it the features that enter the head and z_it the logits at answer t. The
probabilities are those of the elementwise product of two rows of logits, which is no output of the model: for
comparison with κ of the same layer (`measures.relative_flatness`).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from flattrain.core.functional import tapped
from flattrain.ranges import Refused, checked
from flattrain.types import Estimate, Measure, Seen, Statistic


@checked
def product_of_logits(*, layer: str = "head") -> Measure:
    """The expression above for the head `layer`."""

    def statistic(seen: Seen, noise: Mapping[str, Tensor]) -> Statistic:
        z, phi = seen.outputs, tapped(seen, layer).input
        if z.ndim != 3 or z.shape[1] != 2 or phi.ndim != 3 or seen.criterion.name != "cross_entropy":
            raise Refused(
                "product_of_logits needs a classifier with two answers to each example, outputs (n, 2, K) "
                f"from features (n, 2, D); got {tuple(z.shape)} and {tuple(phi.shape)}"
            )
        impurity = 1 - (z[:, 0] * z[:, 1]).softmax(-1).square().sum(-1)
        return {
            "mean": (phi.square().sum((1, 2)) * impurity).mean(),
            "squares": tapped(seen, layer).weight.square().sum(),
        }

    return Measure(
        "product_of_logits",
        statistic,
        lambda s: Estimate(s["squares"] * s["mean"]),
        f"squared norm of the weight of {layer!r} times the mean of ‖φ‖² of both answers and 1 − Σ p², "
        "p the softmax of the product of the two rows of logits",
        combine="examples",
        layers=(layer,),
    )
