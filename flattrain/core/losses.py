"""Losses with the structure that exact curvature needs: the Hessian of the loss in the network's outputs.

For one example with outputs z ∈ ℝᴷ and S = ∇²_z ℓ = L Lᵀ (K outputs, B examples):

    cross entropy   S = diag(p) − p pᵀ,  L = diag(√p) − p √pᵀ   (p = softmax z; any target distribution)
    squared error   S = c I,             L = √c I              (c = 2 for Σ_k (z_k − y_k)²)

L stays on the graph: detaching it loses the term ∂S/∂θ of a penalty's gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flattrain.ranges import Refused
from flattrain.types import Loss


def _softmax_factor(outputs: Tensor) -> Tensor:
    p = outputs.softmax(-1)
    root = p.sqrt()
    return torch.diag_embed(root) - p.unsqueeze(-1) * root.unsqueeze(-2)


def _softmax_trace_with(outputs: Tensor, weight: Tensor) -> Tensor:
    # Tr(W Wᵀ (diag p − p pᵀ)) = Σ_s p_s ‖w_s‖² − ‖Σ_s p_s w_s‖²; with w̄ = Σ p_s w_s it is
    # Σ_s p_s ‖w_s − w̄‖², computed through the Gram matrix W Wᵀ (K × K) to stay cheap for wide layers.
    p = outputs.softmax(-1)
    gram = weight @ weight.T
    return p @ gram.diagonal() - ((p @ gram) * p).sum(-1)


def _argmax_error(outputs: Tensor, target: Tensor) -> Tensor:
    labels = target.argmax(-1) if target.ndim == outputs.ndim else target
    return (outputs.argmax(-1) != labels).to(outputs.dtype).mean()


def _sign_error(outputs: Tensor, target: Tensor) -> Tensor:
    # An output of exactly 0 counts as an error (Wen et al. 2023, Prop. 4.1).
    return (outputs * target.reshape(outputs.shape) <= 0).to(outputs.dtype).mean()


cross_entropy = Loss("cross_entropy", F.cross_entropy, _argmax_error, _softmax_factor, _softmax_trace_with)


def _scaled_identity(c: Callable[[Tensor], float]) -> dict[str, Any]:
    return {
        "factor": lambda z: (
            c(z) ** 0.5 * torch.eye(z.shape[-1], dtype=z.dtype, device=z.device).expand(*z.shape, z.shape[-1])
        ),
        "trace_with": lambda z, w: c(z) * (w * w).sum() * torch.ones_like(z[..., 0]),
    }


def _squared(outputs: Tensor, target: Tensor) -> Tensor:
    # Written out: F.mse_loss has no forward-mode second derivative (pytorch#123996).
    return (outputs - target.reshape(outputs.shape)).square()


squared_error = Loss(
    "squared_error",
    lambda z, y: _squared(z, y).sum(-1).mean(),
    _sign_error,
    **_scaled_identity(lambda z: 2.0),
)
mean_squared_error = Loss(
    "mean_squared_error",
    lambda z, y: _squared(z, y).mean(),
    _sign_error,
    **_scaled_identity(lambda z: 2.0 / z.shape[-1]),
)


def recognise(loss_fn: Callable[[Tensor, Tensor], Tensor] | Loss) -> Loss:
    """The structure of a loss given by the user; one without known structure is taken as it is.

    Label smoothing keeps S (it depends on the outputs alone); class weights and ignored labels do not,
    so those are left without structure and the measures that need it say so.
    """
    if isinstance(loss_fn, Loss):
        return loss_fn
    if loss_fn is F.cross_entropy:
        return cross_entropy
    if loss_fn is F.mse_loss:
        return mean_squared_error
    reduction = getattr(loss_fn, "reduction", None)
    plain = reduction == "mean" and getattr(loss_fn, "weight", None) is None
    if isinstance(loss_fn, nn.CrossEntropyLoss) and plain:
        return Loss("cross_entropy", loss_fn, _argmax_error, _softmax_factor, _softmax_trace_with)
    if isinstance(loss_fn, nn.MSELoss) and plain:
        return mean_squared_error
    if reduction not in ("mean", None):
        raise Refused(
            f"loss {type(loss_fn).__name__}: reduction is {reduction!r}, but flattrain works "
            "with means over examples; use reduction='mean'"
        )
    return Loss(getattr(loss_fn, "__name__", type(loss_fn).__name__), loss_fn)
