"""Trace of the connectivity tangent kernel (Kim et al., arXiv 2209.15208).

    (1/n) Σ_i ‖J(x_i) diag θ‖_F²,      J = ∂f/∂θ of the outputs, all trainable parameters, biases too

Of outputs with a row per token, J has the rows of them all: it is a sum over tokens.

Rescaling the weights into and out of a unit of a ReLU net changes θ_k and ∂f/∂θ_k inversely, so every
entry of J diag θ stays and with it the trace. No output Hessian enters: it is a property of the
function's outputs, not of the loss.

    sketch  E_v (1/n) ‖θ ∘ Jᵀ v‖², v Rademacher over examples and outputs, as implemented in the released
            code: one pullback per probe, any network
    exact   K pullbacks and the layers' structure (core.ghost), no probes: in a linear layer ∂f_c/∂W = δ_c φᵀ
            has rank one per example, hence Σ_c (δ_c∘δ_c)ᵀ ((W∘W)(φ∘φ) + b∘b)

Since f(θ + ρ θ∘ε) − f(θ) = ρ J(θ∘ε) + O(ρ²), the trace is also the mean squared change of the outputs
under relative noise of size ρ in the weights, over ρ².
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from flattrain.core import ghost
from flattrain.core.eager import need_examples_apart
from flattrain.core.jacobians import unit_rows
from flattrain.core.probes import over_outputs
from flattrain.core.trace import mean_of_probes
from flattrain.ranges import Count, checked
from flattrain.types import Draw, Estimate, Measure, Seen, Statistic


def _sketch(seen: Seen, noise: Mapping[str, Tensor]) -> Tensor:
    need_examples_apart(seen, "connectivity_trace")
    live = list(seen.params.values())
    values = []
    for v in noise.values():
        pulled = torch.autograd.grad(seen.outputs, live, v, create_graph=True, materialize_grads=True)
        each = [(p * g).square().sum() for p, g in zip(live, pulled, strict=True)]
        values.append(torch.stack(each).sum() / len(v))
    return torch.stack(values)


def _exact(seen: Seen, uncovered: ghost.Uncovered) -> Tensor:
    parts = ghost.pieces(seen, unit_rows(seen.outputs), "connectivity_trace", uncovered)
    return torch.stack([ghost.adaptive_squares(part) for part in parts]).sum(0).sum(1).mean()


@checked
def connectivity_trace(
    *,
    form: Literal["sketch", "exact"] = "sketch",
    probes: Count = 1,
    uncovered: Literal["refuse", "ignore", "dense"] = "refuse",
) -> Measure:
    """(1/n) Σ ‖J(x_i) diag θ‖_F²; `uncovered` says what `exact` does with parameters of unknown structure."""

    def statistic(seen: Seen, noise: Mapping[str, Tensor]) -> Statistic:
        return {"trace": _sketch(seen, noise) if form == "sketch" else _exact(seen, uncovered)}

    def draws(seen: Seen) -> dict[str, Draw]:
        if form == "exact":
            return {}
        return {str(k): over_outputs(seen.outputs) for k in range(probes)}

    words = f"{probes} Rademacher probes" if form == "sketch" else "exact"
    return Measure(
        "connectivity_trace",
        statistic,
        lambda s: mean_of_probes(s["trace"]) if s["trace"].ndim else Estimate(s["trace"]),
        f"trace of the connectivity tangent kernel: mean over examples of ‖J diag θ‖_F², {words}",
        combine="examples",
        layers=None if form == "exact" else (),
        draws=draws,
        order=2,
    )
