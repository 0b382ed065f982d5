"""Entropy-SGD (Chaudhari et al. 2017, arXiv 1611.01838): descent on local entropy, by an inner Langevin walk.

    w'₀ = μ₀ = w,    L times:   w' ← w' − η' [∇L(w') − γ (w − w')] + ε √(2η') ξ,    μ ← ¾ μ + ¼ w'
    the rule's gradient:        w − μ
    scoping:                    γ = γ0 (1 + γ1)^step

The constants, the ¾ and the missing factor γ in front of w − μ are those of the authors' code
(ucla-vision/entropy-sgd, python/optim.py), except L, which is 0 (off) there; 20 is our default. There the
inner walk has the optimizer's momentum, and the step counter of the scoping is never advanced; here the walk
has none and stays on the step's batch, and the scoping advances. A step costs L gradients.

The schedule's share s mixes: (1 − s) g + s (w − μ), our form, so that the rule can be switched on late.
"""

from __future__ import annotations

import math

from flattrain.core.probes import direction, over_parameters
from flattrain.ranges import Count, NonNegative, Positive, checked
from flattrain.types import Batch, Draw, GradFn, Logs, Params, Rule


@checked
def entropy_sgd(
    *,
    langevin: Count = 20,
    inner_lr: Positive = 0.1,
    gamma0: NonNegative = 0.01,
    gamma1: NonNegative = 0.0,
    noise: NonNegative = 1e-4,
) -> Rule:
    """L, η', γ0, γ1 and ε. The learning rate of the outer step wants to be near 1."""

    def wrap(grad_fn: GradFn) -> GradFn:
        def gradient(params: Params, batch: Batch) -> tuple[Params, Logs]:
            g, logs = grad_fn(params, batch)
            share = batch.moment.strength
            if share == 0:
                return g, logs
            # Without scoping the step is not read, and the rule can be compiled.
            gamma = gamma0 * (1 + gamma1) ** batch.moment.step if gamma1 else gamma0
            jolt = noise * math.sqrt(2 * inner_lr)
            walk = mean = params
            for k in range(langevin):
                slope = grad_fn(walk, batch)[0] if k else g
                xi = direction(batch.noise, k, params)
                walk = {
                    n: at - inner_lr * (slope[n] - gamma * (params[n] - at)) + jolt * xi[n].to(at.dtype)
                    for n, at in walk.items()
                }
                mean = {n: 0.75 * mean[n] + 0.25 * at for n, at in walk.items()}
            return {n: (1 - share) * g[n] + share * (w - mean[n]) for n, w in params.items()}, logs

        return gradient

    def draws(params: Params, batch: Batch) -> dict[str, Draw]:
        return over_parameters(params, "normal", langevin)

    return Rule(wrap, draws)
