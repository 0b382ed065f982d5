"""Norm of the gradient of the mean loss, ‖∇L‖, and its square; with `lam`, of L + (λ/2)‖θ‖².

λ is the weight_decay of SGD: where training has ended, the norm of the gradient of what was minimised is 0.

The statistic is the gradient itself, a mean over examples; the norm is taken of the whole set's gradient.
Averaged over batches, norms come out too large by the noise of the batches (Jensen).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from flattrain.core import trees
from flattrain.core.roots import root
from flattrain.ranges import NonNegative, checked
from flattrain.types import Estimate, Measure, Seen, Statistic


def _gradient(seen: Seen, noise: Mapping[str, Tensor]) -> Statistic:
    live = list(seen.params.values())
    gradient = torch.autograd.grad(seen.loss, live, create_graph=True, materialize_grads=True)
    return dict(zip(seen.params, gradient, strict=True))


@checked
def gradient_norm(*, lam: NonNegative = 0.0) -> Measure:
    """‖∇L + λθ‖₂ over all trainable parameters; at a stationary point its gradient as a penalty is 0."""

    def statistic(seen: Seen, noise: Mapping[str, Tensor]) -> Statistic:
        slopes = _gradient(seen, noise)
        return {name: g + lam * seen.params[name] for name, g in slopes.items()} if lam else slopes

    of = f"the mean loss + {lam / 2:g} ‖θ‖²" if lam else "the mean loss"
    return Measure(
        "gradient_norm",
        statistic,
        lambda s: Estimate(root(trees.dot(s, s))),
        f"norm of the gradient of {of} over all trainable parameters",
        order=2,
    )


def squared_gradient_norm() -> Measure:
    """‖∇L‖₂² over all trainable parameters."""
    return Measure(
        "squared_gradient_norm",
        _gradient,
        lambda s: Estimate(trees.dot(s, s)),
        "squared norm of the gradient of the mean loss over all trainable parameters",
        order=2,
    )
