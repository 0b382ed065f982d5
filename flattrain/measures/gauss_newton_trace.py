"""Tr G of the Gauss–Newton (= Fisher) matrix of the mean loss over linear layers, exactly.

    Tr G = mean_i Σ_c ‖∂(L_i[:, c]ᵀ f_i)/∂θ‖² = mean_i Σ_c Σ_l ‖g_l,ic‖² (‖φ_l,i‖² + 1)

with S = L Lᵀ the output Hessian, g_l,ic the pulled-back column at layer l, and the 1 for a bias: the
gradient of a linear layer has rank one per example, so its norm is a product. Exact with K vector-Jacobian
products.

Tr H = Tr G for piecewise-linear nets, and for any net at interpolation, where the residuals vanish: it is the
sharpness of Wen et al. 2023, Lemma 4.1, (2/n) Σ ‖∇f_i‖² for squared error.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from flattrain.core.eager import need_separable
from flattrain.ranges import Refused
from flattrain.types import Estimate, Measure, Seen, Statistic


def _statistic(seen: Seen, noise: Mapping[str, Tensor]) -> Statistic:
    if seen.criterion.factor is None:
        raise Refused(
            f"gauss_newton_trace needs the output Hessian of the loss, unknown for "
            f"{seen.criterion.name!r}; use cross entropy or squared error"
        )
    need_separable(seen, "gauss_newton_trace")
    taps = list(seen.taps.values())
    total = torch.zeros_like(seen.outputs[:, 0])
    for column in seen.criterion.factor(seen.outputs).unbind(-1):
        pulled = torch.autograd.grad(seen.outputs, [tap.output for tap in taps], column, create_graph=True)
        for tap, g in zip(taps, pulled, strict=True):
            size = tap.input.square().sum(-1) + (0 if tap.bias is None else 1)
            total = total + g.square().sum(-1) * size
    return {"trace": total.mean()}


def gauss_newton_trace() -> Measure:
    """Tr G over all parameters of a net whose trainable layers are linear."""
    return Measure(
        "gauss_newton_trace",
        _statistic,
        lambda s: Estimate(s["trace"]),
        "trace of the Gauss–Newton matrix of the mean loss, exact",
        layers=None,
        order=2,
    )
