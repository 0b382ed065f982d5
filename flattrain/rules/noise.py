"""Gradients under noise: in the labels (Blanc et al. 2020) and in the weights.

    label_noise       g = ∇L(θ; x, y + δ ε),                       ε = ±1 per example, regression targets only
    weight_noise      g = mean of ∇L(θ + s ξ),                     ξ standard normal, `copies` draws
    antithetic_noise  g = mean of ½ ∇L(θ + s ξ) + ½ ∇L(θ − s ξ),   `pairs` draws: no term odd in ξ

Both estimate the gradient of the smoothed loss E_ξ L(θ + s ξ), at one gradient per copy. The pairs lose the
term s ∇²L ξ, which is all of the estimate's variance to lowest order (our form). A schedule scales δ and s.

Near the interpolation manifold each moves θ like −η ∇(c Tr H) per step: c = ηδ²/(2B) for label noise
under (f − y)², s²/2 for weight noise, ρ²/2 for per-example SAM. So ηδ² = B ρ² = B s² are of one strength.
"""

from __future__ import annotations

import torch

from flattrain.core import trees
from flattrain.core.probes import direction, over_parameters
from flattrain.ranges import Count, NonNegative, Refused, checked
from flattrain.types import Batch, Draw, GradFn, Logs, Params, Rule


@checked
def label_noise(*, delta: NonNegative = 0.5) -> Rule:
    """Fresh noise ±δ on every target of every step."""

    def wrap(grad_fn: GradFn) -> GradFn:
        def gradient(params: Params, batch: Batch) -> tuple[Params, Logs]:
            if not torch.is_floating_point(batch.y):
                raise Refused("label_noise adds ±delta to real targets; these are class labels")
            signs = batch.noise["rule.labels"].to(batch.y.dtype)
            if signs.shape != batch.y.shape:
                raise Refused(
                    f"label_noise was drawn for {len(signs)} examples and is asked for {len(batch.y)}: put "
                    "it outside of the rule that takes the batch apart"
                )
            return grad_fn(params, batch._replace(y=batch.y + delta * batch.moment.strength * signs))

        return gradient

    def draws(params: Params, batch: Batch) -> dict[str, Draw]:
        return {"rule.labels": Draw("rademacher", tuple(batch.y.shape), per_example=True)}

    return Rule(wrap, draws)


@checked
def weight_noise(*, scale: NonNegative = 0.05, copies: Count = 1) -> Rule:
    """Fresh Gaussian noise of standard deviation `scale` on every weight, in each of `copies` gradients."""
    return _smoothing(scale, copies, (1.0,))


@checked
def antithetic_noise(*, scale: NonNegative = 0.05, pairs: Count = 1) -> Rule:
    """The same noise with both signs, in each of `pairs` pairs of gradients."""
    return _smoothing(scale, pairs, (1.0, -1.0))


def _smoothing(scale: float, count: int, signs: tuple[float, ...]) -> Rule:
    """The mean of the gradients at θ + sign · scale · ξ over `count` draws of ξ and the signs."""

    def wrap(grad_fn: GradFn) -> GradFn:
        def gradient(params: Params, batch: Batch) -> tuple[Params, Logs]:
            found = []
            for number in range(count):
                xi = direction(batch.noise, number, params)
                xi = {k: v.to(params[k].dtype) for k, v in xi.items()}
                for sign in signs:
                    there = trees.axpy(sign * scale * batch.moment.strength, xi, params)
                    found.append(grad_fn(there, batch))
            return _mean([g for g, _ in found]), _mean([logs for _, logs in found])

        return gradient

    return Rule(wrap, lambda params, batch: over_parameters(params, "normal", count))


def _mean(of: list[Params]) -> Params:
    return {k: torch.stack([each[k] for each in of]).mean(0) for k in of[0]}
