"""Tr ∇²L of a two-layer ReLU net under squared error, in closed form (Wen, Li & Ma 2023, eq. 2).

Net f = w·a / r with a = relu(z), z = Wx + b, and loss ℓ = (f − y)². With active set J = {j : z_j > 0},
ẋ = (x, 1) with a bias and x without, k = |J|:

    Tr ∇²ℓ = 2 ‖∇f‖² + 2 (f − y) Tr ∇²f

r = 1 (no normalisation): f is bilinear across the layers, so Tr ∇²f = 0 almost everywhere and
    ‖∇f‖² = ‖w_J‖² ‖ẋ‖² + ‖a‖²                                     at every θ, not only at interpolation.

r = ‖a‖ (simplified LayerNorm, outside its clamp): with g_j = w_j/r − f a_j/r² on J,
    ‖∇f‖² = ‖g‖² ‖ẋ‖² + 1        Tr ∇²f = ‖ẋ‖² (1 − k) f / r²
    since ∂²f/∂a_j² = −2 w_j a_j/r³ − f/r² + 3 f a_j²/r⁴ sums over J to (−2 − k + 3) f/r².
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from flattrain.core.eager import need_separable
from flattrain.ranges import NonNegative, Refused, checked
from flattrain.types import Estimate, Measure, Seen, Statistic


def _trace(seen: Seen, clamp: float | None) -> Tensor:
    hidden, head = seen.taps["hidden"], seen.taps["head"]
    if seen.criterion.name != "squared_error" or head.output.shape[-1] != 1:
        raise Refused("two_layer_trace needs one output and the loss squared_error")
    need_separable(seen, "two_layer_trace")
    active = (hidden.output > 0).to(hidden.output.dtype)
    w = head.weight[0]
    a = hidden.output.relu()
    if clamp is None and not torch.equal(head.input, a):
        raise Refused("two_layer_trace is of relu nets; for another activation take gauss_newton_trace")
    x2 = hidden.input.square().sum(-1) + (0 if hidden.bias is None else 1)
    f = seen.outputs.reshape(-1)
    residual = f - seen.target.reshape(-1)
    if clamp is None:
        gradient2 = (active @ w.square()) * x2 + a.square().sum(-1)
        return (2 * gradient2).mean()
    norm2 = a.square().sum(-1)
    free = norm2 > clamp**2
    r2 = norm2.clamp(min=clamp**2)
    g = active * (w / r2.sqrt()[:, None] - (free * f / r2)[:, None] * a)
    gradient2 = g.square().sum(-1) * x2 + norm2 / r2
    second = torch.where(free, x2 * (1 - active.sum(-1)) * f / r2, torch.zeros_like(f))
    return (2 * gradient2 + 2 * residual * second).mean()


@checked
def two_layer_trace(*, clamp: NonNegative | None = None) -> Measure:
    """Exact Tr ∇²L; `clamp` is the ε of the simplified LayerNorm, None for nets without one."""

    def statistic(seen: Seen, noise: Mapping[str, Tensor]) -> Statistic:
        return {"trace": _trace(seen, clamp)}

    return Measure(
        "hessian_trace",
        statistic,
        lambda s: Estimate(s["trace"]),
        "trace of the Hessian of the mean squared error, closed form for two-layer ReLU nets",
        layers=("hidden", "head"),
    )
