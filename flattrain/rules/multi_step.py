"""SAM with an ascent of several steps.

    θ_0 = θ,   θ_j = θ_{j−1} + (ρ/n) g_j/‖g_j‖ with g_j = ∇L(θ_{j−1}),   the rule's gradient: ∇L(θ_n)

The plain form (ours): n normalised steps of equal length on the same batch. They end within ρ of θ, so there
is nothing to project. n = 1 is SAM; the cost is n + 1 gradients.
"""

from __future__ import annotations

from flattrain.core import trees
from flattrain.ranges import Count, NonNegative, checked
from flattrain.rules.second_look import second_look
from flattrain.types import Batch, GradFn, Logs, Params, Rule


@checked
def n_step_sam(*, rho: NonNegative = 0.05, steps: Count = 2) -> Rule:
    """SAM that ascends a distance of ρ in `steps` steps, each along the gradient where it stands."""

    def look(grad_fn: GradFn, params: Params, batch: Batch, g: Params, radius: float) -> tuple[Params, Logs]:
        there = params
        after: Logs = {}
        for _ in range(steps):
            there = trees.axpy(radius / steps * trees.inverse(trees.norm(g)), g, there)
            g, after = grad_fn(there, batch)
        return g, after

    return Rule(second_look(rho, look))
