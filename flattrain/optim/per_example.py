"""SAM with an ascent for every example (m-sharpness with m = 1), as a loss to call `.backward()` on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from flattrain.core.functional import Forward, call
from flattrain.core.ghost_sam import per_example_sam as ascended
from flattrain.core.losses import recognise
from flattrain.ranges import Refused, refusal
from flattrain.types import Loss


def per_example_sam(
    model: nn.Module,
    loss_fn: Callable[[Tensor, Tensor], Tensor] | Loss,
    x: Any,
    y: Tensor,
    *,
    rho: float = 0.05,
    forward: Forward = call,
) -> Tensor:
    """mean_i ℓ_i(θ + ρ g_i/‖g_i‖), g_i = ∇ℓ_i(θ) held fixed      (Foret et al. 2021, m = 1; core.ghost_sam)

        loss = per_example_sam(model, F.cross_entropy, x, y, rho=0.05)
        loss.backward()
        optimizer.step()                      # any optimizer

    Exact, for models of linear, convolution, embedding and affine normalisation layers, in two passes over
    the batch; no example has weights of its own. BatchNorm must be in evaluation mode. For outputs (n, T, K)
    with labels (n, T) an example is a sequence, its loss the mean over its tokens (core.losses).
    """
    problem = refusal("NonNegative", rho)
    if problem:
        raise Refused(f"per_example_sam: rho {problem}")
    return ascended(model, recognise(loss_fn), x, y, rho=rho, forward=forward).loss
