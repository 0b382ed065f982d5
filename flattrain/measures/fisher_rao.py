"""Fisher–Rao norm (Liang, Poggio, Rakhlin & Stokes, arXiv 1711.01530), with the labels of the data.

    ‖θ‖_fr = √(θᵀ F θ) = √( (1/n) Σ_i ⟨θ, ∇ℓ_i⟩² ),     F = (1/n) Σ ∇ℓ_i ∇ℓ_iᵀ

⟨θ, ∇ℓ_i⟩ = ⟨∂ℓ_i/∂z_i, (∂z_i/∂θ) θ⟩, so one forward-mode product J θ serves all examples and no
per-example gradient is formed. All trainable parameters count, biases too.

Networks of D bias-free weight layers with ReLU are homogeneous, J θ = D z, and under cross entropy this
becomes D √( mean (⟨p, z⟩ − z_y)² ), the form of the code of Petzka et al. 2021 (with D written L + 1).
The general form needs no count of layers, and holds where biases or smooth activations break homogeneity.
Under class weights the mean is weighted as the loss is; the examples of a loss of tokens are sequences.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from flattrain.core.eager import need_examples_apart
from flattrain.core.losses import example_slopes
from flattrain.core.roots import root
from flattrain.types import Estimate, Measure, Seen, Statistic


def _statistic(seen: Seen, noise: Mapping[str, Tensor]) -> Statistic:
    need_examples_apart(seen, "fisher_rao")
    slope = example_slopes(seen.criterion, seen.loss, seen.outputs, seen.target)
    radial = torch.func.jvp(lambda p: seen.run(p, seen.inputs), (seen.params,), (seen.params,))[1]
    return {"square": (slope * radial).flatten(1).sum(-1).square().mean()}


def fisher_rao() -> Measure:
    """√(mean ⟨θ, ∇ℓ_i⟩²) over all trainable parameters."""
    return Measure(
        "fisher_rao",
        _statistic,
        lambda s: Estimate(root(s["square"])),
        "Fisher–Rao norm: root mean square over examples of ⟨θ, gradient of the example's loss⟩, exact",
        order=2,
    )
