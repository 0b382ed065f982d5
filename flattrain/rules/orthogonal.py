"""Steps towards a smaller Hessian trace that leave the descent alone (Ahn, Jadbabaie & Sra 2024, 2305.15659).

    g = ∇L(θ),    the rule's gradient: g + v,    v the part of a perturbed gradient orthogonal to g

    randomly_smoothed               of ∇L(θ + ρ u),                   u uniform on the unit sphere
    sharpness_aware_perturbation    of ∇ℓ_i(θ + ρ σ ∇ℓ_i/‖∇ℓ_i‖),     i a random example, σ = ±1

v is added only where ‖g‖ <= `below` (the paper's ε0; null: everywhere, our form); elsewhere the step is the
plain one, with the same learning rate, where the paper has another. Its algorithms return a random iterate,
for the sake of the proof; training returns the last. The default ρ is ours.
The schedule's share scales ρ, and ρ = 0 is the plain gradient (also for the second rule, whose v would not
vanish otherwise). Costs: two gradients; one, and two of a single example.
"""

from __future__ import annotations

import torch

from flattrain.core import trees
from flattrain.core.probes import direction, over_parameters
from flattrain.ranges import NonNegative, checked
from flattrain.rules.second_look import second_look
from flattrain.rules.universal import sphere
from flattrain.types import Batch, Draw, GradFn, Logs, Params, Rule


@checked
def randomly_smoothed(*, rho: NonNegative = 0.05, below: NonNegative | None = None) -> Rule:
    """RS: the perturbation is random."""

    def look(grad_fn: GradFn, params: Params, batch: Batch, g: Params, radius: float) -> tuple[Params, Logs]:
        z = {n: v.to(params[n].dtype) for n, v in direction(batch.noise, 0, params).items()}
        v, there = grad_fn(trees.axpy(radius, sphere(z), params), batch)
        return _beside(g, v, below), there

    def draws(params: Params, batch: Batch) -> dict[str, Draw]:
        return over_parameters(params, "normal", 1)

    return Rule(second_look(rho, look), draws)


@checked
def sharpness_aware_perturbation(*, rho: NonNegative = 0.05, below: NonNegative | None = None) -> Rule:
    """SA: the perturbation is along the gradient of one example, up or down.

    Not for penalties that draw noise per example inside it: the single example has none of its own.
    """

    def look(grad_fn: GradFn, params: Params, batch: Batch, g: Params, radius: float) -> tuple[Params, Logs]:
        chosen = batch.noise["rule.example"].argmax(0, keepdim=True)
        one = batch._replace(x=batch.x.index_select(0, chosen), y=batch.y.index_select(0, chosen))
        its, _ = grad_fn(params, one)
        length = radius * batch.noise["rule.sign"] * trees.inverse(trees.norm(its))
        v, there = grad_fn(trees.axpy(length, its, params), one)
        return _beside(g, v, below), there

    def draws(params: Params, batch: Batch) -> dict[str, Draw]:
        # the largest of independent normals is at a uniformly random place
        examples = Draw("normal", (len(batch.y),), per_example=True)
        return {"rule.example": examples, "rule.sign": Draw("rademacher", ())}

    return Rule(second_look(rho, look), draws)


def _beside(g: Params, v: Params, below: float | None) -> Params:
    """g + the part of v orthogonal to g, where g is short enough; all of v where g = 0."""
    across = trees.orthogonal(v, g)
    if below is None:
        return trees.axpy(1, across, g)
    return {k: torch.where(trees.norm(g) <= below, slope + across[k], slope) for k, slope in g.items()}
