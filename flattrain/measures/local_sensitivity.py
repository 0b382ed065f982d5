"""Maximum local sensitivity, to the input and to every layer (Chen, Recanatesi & Shea-Brown 2023).

    MLS  = (1/n) Σ_i σ_max(∂f/∂x (x_i))
    NMLS = Σ_l (1/n) Σ_i σ_max(∂f/∂φ_l (x_i)),     φ_l the input of linear layer l

The maximum is over directions of the perturbation, the mean over examples. NMLS treats each layer's input
as if it were the input of the net. Definitions as in summaries of the paper (arXiv 2310.01770).

For a first layer Wx, ∇_W f = δ xᵀ and ∂f/∂x = δᵀW, hence ‖∂f/∂x‖_F <= ‖W‖₂ ‖∇_W f‖_F / ‖x‖, and by
Cauchy–Schwarz MLS <= ‖W‖₂ (mean 1/‖x‖²)^½ S^½ with S = mean ‖∇_θ f‖_F²: flat at interpolation means
insensitive, never the converse.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from flattrain.core.functional import linear_taps
from flattrain.core.jacobians import gram, layer_jacobian
from flattrain.measures.input_jacobian import input_jacobian, spectral_norms
from flattrain.ranges import checked
from flattrain.types import Estimate, Measure, Seen, Statistic


def local_sensitivity() -> Measure:
    """MLS, the mean over examples of the largest singular value of ∂f/∂x; see `input_jacobian`."""
    mean = input_jacobian(norm="mean_spectral")
    return Measure(
        "local_sensitivity",
        mean.statistic,
        mean.reduce,
        "maximum local sensitivity: mean over examples of the largest singular value of the Jacobian of the "
        "outputs (logits) in the inputs, exact",
        combine="examples",
        order=mean.order,
    )


@checked
def network_local_sensitivity(*, layers: tuple[str, ...] | None = None) -> Measure:
    """NMLS over `layers` (None: every linear layer of a net that trains no others)."""

    def statistic(seen: Seen, noise: Mapping[str, Tensor]) -> Statistic:
        what = "network_local_sensitivity"
        each = [
            spectral_norms(gram(layer_jacobian(seen, name, what))).mean() for name in linear_taps(seen, what)
        ]
        return {"sensitivity": torch.stack(each).sum()}

    return Measure(
        "network_local_sensitivity",
        statistic,
        lambda s: Estimate(s["sensitivity"]),
        "sum over linear layers of the mean over examples of the largest singular value of the Jacobian of "
        "the outputs (logits) in the layer's input, exact",
        combine="examples",
        layers=None if layers is None else tuple(layers),
        order=2,
    )
