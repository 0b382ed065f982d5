"""Norm of the gradient of the mean loss, ‖∇L‖, and its square; or of the loss with weight decay, ‖∇L + λθ‖.

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
def gradient_norm(*, weight_decay: NonNegative = 0.0) -> Measure:
    """‖∇L + λθ‖₂ over all trainable parameters; at a stationary point its gradient as a penalty is 0.

    weight_decay : λ, that of the training, where the stationary points of L + (λ/2)‖θ‖² are meant.
    """

    def statistic(seen: Seen, noise: Mapping[str, Tensor]) -> Statistic:
        gradient = _gradient(seen, noise)
        return trees.axpy(weight_decay, seen.params, gradient) if weight_decay else gradient

    added = f" plus {weight_decay:g} times the parameters" if weight_decay else ""
    return Measure(
        "gradient_norm",
        statistic,
        lambda s: Estimate(root(trees.dot(s, s))),
        f"norm of the gradient of the mean loss{added} over all trainable parameters",
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
