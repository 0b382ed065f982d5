"""Gradients under noise: in the labels (Blanc et al. 2020) and in the weights.

    label_noise    g = ∇L(θ; x, y + δ ε),  ε = ±1 per example       regression targets only
    weight_noise   g = ∇L(θ + s ξ),        ξ standard normal

Near the interpolation manifold each moves θ like −η ∇(c Tr H) per step: c = ηδ²/(2B) for label noise
under (f − y)², s²/2 for weight noise, ρ²/2 for per-example SAM. So ηδ² = B ρ² = B s² are of one strength.
"""

from __future__ import annotations

import torch

from flattrain.core import trees
from flattrain.ranges import NonNegative, Refused, checked
from flattrain.types import Batch, Draw, GradFn, Logs, Params, Rule


@checked
def label_noise(*, delta: NonNegative = 0.5) -> Rule:
    """Fresh noise ±δ on every target of every step."""

    def wrap(grad_fn: GradFn) -> GradFn:
        def gradient(params: Params, batch: Batch) -> tuple[Params, Logs]:
            if not torch.is_floating_point(batch.y):
                raise Refused("label_noise adds ±delta to real targets; these are class labels")
            signs = batch.noise["rule.labels"].to(batch.y.dtype)
            return grad_fn(params, batch._replace(y=batch.y + delta * signs))

        return gradient

    def draws(params: Params, batch: Batch) -> dict[str, Draw]:
        return {"rule.labels": Draw("rademacher", tuple(batch.y.shape))}

    return Rule(wrap, draws)


@checked
def weight_noise(*, scale: NonNegative = 0.05) -> Rule:
    """Fresh Gaussian noise of standard deviation `scale` on every weight of every step."""

    def wrap(grad_fn: GradFn) -> GradFn:
        def gradient(params: Params, batch: Batch) -> tuple[Params, Logs]:
            xi = {k: batch.noise[f"rule.{k}"].to(v.dtype) for k, v in params.items()}
            return grad_fn(trees.axpy(scale, xi, params), batch)

        return gradient

    def draws(params: Params, batch: Batch) -> dict[str, Draw]:
        return {f"rule.{k}": Draw("normal", tuple(v.shape)) for k, v in params.items()}

    return Rule(wrap, draws)
