"""Functional SAM (Singh et al. 2025, arXiv 2502.02407): SAM without what the ascent does to the residual.

    g = Jᵀ(θ + ε) r(θ),   ε = ρ ∇L(θ)/‖∇L(θ)‖,   J = ∂f/∂θ,   r(θ) = ∂L/∂f at the outputs f(θ)

SAM's own gradient is Jᵀ(θ + ε) r(θ + ε). At interpolation r(θ) = 0, and with it g, where SAM still moves.

It is computed as SAM's gradient and Jᵀ(θ + ε) (r(θ) − r(θ + ε)) on top, so that penalties and rules inside
are ascended as in SAM (our form; the paper has the loss alone, for which the two agree). That costs a
pass forward and a pull-back more than SAM.

`outputs`, (params, batch) -> (n, K), and `criterion` are the objective's in a recipe.
"""

from __future__ import annotations

from torch import Tensor
from torch.func import grad, vjp

from flattrain.core import trees
from flattrain.ranges import NonNegative, Refused, checked
from flattrain.rules.second_look import second_look
from flattrain.types import Batch, GradFn, Logs, Loss, OfBatch, Params, Rule


@checked
def functional_sam(
    *, rho: NonNegative = 0.05, outputs: OfBatch | None = None, criterion: Loss | None = None
) -> Rule:
    """SAM that moves the Jacobian and leaves the residual; ρ is SAM's default, not the paper's."""
    if outputs is None or criterion is None:
        raise Refused(
            "functional_sam: needs outputs, a function (params, batch) -> outputs, and the criterion; a "
            "recipe has them for nets without buffers"
        )
    seen, slope = outputs, grad(criterion.mean)

    def look(grad_fn: GradFn, params: Params, batch: Batch, g: Params, radius: float) -> tuple[Params, Logs]:
        there = trees.axpy(radius * trees.inverse(trees.norm(g)), g, params)
        ascended, after = grad_fn(there, batch)

        def at(p: Params) -> Tensor:
            return seen(p, batch)

        outputs_there, pull = vjp(at, there)[:2]
        back = slope(at(params), batch.y) - slope(outputs_there, batch.y)
        (added,) = pull(back)
        return trees.axpy(1.0, added, ascended), after

    return Rule(second_look(rho, look))
