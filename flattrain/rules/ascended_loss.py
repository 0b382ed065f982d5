"""Gradient descent on the ascended loss itself, which SAM only approximates (Wen, Ma & Li 2022).

    L^Asc(θ) = L(θ + ρ u),  u = g/‖g‖,  g = ∇L(θ)
    ∇L^Asc(θ) = g̃ + (ρ/‖g‖) ∇²L(θ) (g̃ − u ⟨u, g̃⟩),   g̃ = ∇L(θ + ρ u)

SAM leaves out the second term, the derivative of u. Near a manifold of minima that changes what is minimised:
L^Asc is least where the smallest nonzero eigenvalue of the Hessian is, and SAM goes to where the largest is
(arXiv 2211.05729, Theorems 4.2 and 4.5). Where the gradient is zero there is no u, and the gradient is g̃ = 0.
"""

from __future__ import annotations

from torch import Tensor
from torch.func import grad

from flattrain.core import trees
from flattrain.ranges import NonNegative, checked
from flattrain.rules.second_look import second_look
from flattrain.types import Batch, GradFn, Logs, Params, Rule


@checked
def ascended_loss(*, rho: NonNegative = 0.05) -> Rule:
    """The gradient of L(θ + ρ ∇L/‖∇L‖) through the ascent, at three gradients, one of them differentiated."""

    def look(grad_fn: GradFn, params: Params, batch: Batch, g: Params, radius: float) -> tuple[Params, Logs]:
        inverse = trees.inverse(trees.norm(g))
        up, after = grad_fn(trees.axpy(radius * inverse, g, params), batch)
        along = trees.dot(g, up) * inverse**2
        across = trees.axpy(-along, g, up)

        def slope(at: Params) -> Tensor:
            return trees.dot(grad_fn(at, batch)[0], across)

        turned = grad(slope)(params)  # ∇²L times what is held fixed
        return trees.axpy(radius * inverse, turned, up), after

    return Rule(second_look(rho, look))
