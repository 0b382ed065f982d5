"""Weight decay and clipping as rules, so that their place in the composition is visible.

    weight_decay   g + λ θ                         coupled: the decay is part of the gradient; from `start` on
    clip           g · min(1, c/‖g‖)               over all parameters together

`[sam, weight_decay]` ascends the decayed objective (as google-research/sam does), `[weight_decay, sam]` the
bare loss (as PyTorch's optimizers do); decoupled decay is the optimizer's (adamw). `[sam, clip]` clips before
the ascent, which does not change SAM's direction, and after it; `[clip, sam]` only after it.
"""

from __future__ import annotations

from flattrain.core import trees
from flattrain.core.clock import since
from flattrain.ranges import NonNegative, Positive, Steps, checked
from flattrain.types import Batch, GradFn, Logs, Params, Rule


@checked
def weight_decay(*, lam: NonNegative = 5e-4, start: Steps = 0) -> Rule:
    """∇(L + (λ/2) ‖θ‖²) from step `start` on, ∇L before."""

    def wrap(grad_fn: GradFn) -> GradFn:
        def gradient(params: Params, batch: Batch) -> tuple[Params, Logs]:
            g, logs = grad_fn(params, batch)
            return trees.axpy(lam * since(batch, start) if start else lam, params, g), logs

        return gradient

    return Rule(wrap)


@checked
def clip(*, norm: Positive = 1.0) -> Rule:
    """At most `norm` long."""

    def wrap(grad_fn: GradFn) -> GradFn:
        def gradient(params: Params, batch: Batch) -> tuple[Params, Logs]:
            g, logs = grad_fn(params, batch)
            shrink = (norm * trees.inverse(trees.norm(g))).clamp(max=1)
            return {k: shrink * v for k, v in g.items()}, logs

        return gradient

    return Rule(wrap)
