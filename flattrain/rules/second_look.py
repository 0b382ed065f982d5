"""Rules that take the gradient where they stand, and look again from somewhere near.

    g = ∇L(θ),    the rule's gradient: look(θ, g, radius),    radius = ρ · the schedule's share

A radius of 0 is the plain gradient, at the cost of one. Logs are those of the first gradient; what the look
logs is `ascended/…`.
"""

from __future__ import annotations

from collections.abc import Callable

from flattrain.types import Batch, GradFn, Logs, Params

Look = Callable[[GradFn, Params, Batch, Params, float], tuple[Params, Logs]]


def second_look(rho: float, look: Look) -> Callable[[GradFn], GradFn]:
    """How such a rule wraps a gradient function.

    look : (grad_fn, θ, batch, g, radius) -> (the rule's gradient, logs of where it looked).
    """

    def wrap(grad_fn: GradFn) -> GradFn:
        def gradient(params: Params, batch: Batch) -> tuple[Params, Logs]:
            g, logs = grad_fn(params, batch)
            radius = rho * batch.moment.strength
            if radius == 0:
                return g, logs
            found, there = look(grad_fn, params, batch, g, radius)
            return found, logs | {f"ascended/{k}": v for k, v in there.items()}

        return gradient

    return wrap
