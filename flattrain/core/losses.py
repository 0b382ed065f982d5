"""Losses with the structure that exact curvature needs: the Hessian of the loss in the network's outputs.

For one example with outputs z ∈ ℝᴷ and S = ∇²_z ℓ = L Lᵀ (K outputs, B examples):

    cross entropy   S = diag(p) − p pᵀ   (p = softmax z; any target distribution), of rank K − 1, and
                    L is its Cholesky factor without the last column, which is zero. With the tails
                    s_j = Σ_{k≥j} p_k (Tanabe & Sagae 1992, for the multinomial distribution)

                        L_jj = √(p_j s_{j+1} / s_j),   L_ij = −p_i √(p_j / (s_j s_{j+1}))   for i > j

    squared error   S = c I,   L = √c I          (c = 2 for Σ_k (z_k − y_k)²)

    smoothed logistic   ℓ = −(1 − p) log σ(yz) − p log σ(−yz) with y = ±1 and p = 0.2,   S = σ(z) σ(−z)
                        (Wen et al. 2023, Appendix A.5, the weights of its terms the right way round);
                        smallest at z = ± log((1 − p)/p), where S = p(1 − p)

A sketch is L ε with ε Rademacher, E[L ε εᵀ Lᵀ] = S, for any root: that of cross entropy takes
L = diag(√p) − p √pᵀ, for which no K × K matrix is formed. Roots stay on the graph: detaching them loses the
term ∂S/∂θ of a penalty's gradient. They go through log p, because √p has no gradient where p underflows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flattrain.ranges import Refused
from flattrain.types import Loss, Seen


def _softmax_factor(outputs: Tensor) -> Tensor:
    log_p = outputs.log_softmax(-1)
    tail = log_p.flip(-1).logcumsumexp(-1).flip(-1)
    own, here, after = log_p[..., :-1], tail[..., :-1], tail[..., 1:]
    # In logarithms nothing cancels: every tail is a sum of positive terms.
    diagonal = ((own + after - here) / 2).exp()
    column = (own - here - after) / 2
    below = (log_p[..., :, None] + column[..., None, :]).tril(-1).exp().tril(-1)
    return F.pad(torch.diag_embed(diagonal), (0, 0, 0, 1)) - below


def _softmax_sketch(outputs: Tensor, noise: Tensor) -> Tensor:
    log_p = outputs.log_softmax(-1)
    moved = (log_p / 2).exp() * noise
    return moved - log_p.exp() * moved.sum(-1, keepdim=True)


def _softmax_trace_with(outputs: Tensor, weight: Tensor) -> Tensor:
    # Tr(W Wᵀ (diag p − p pᵀ)) = Σ_s p_s ‖w_s‖² − ‖Σ_s p_s w_s‖² = ⟨p, diag G − G p⟩ with G = W Wᵀ (K × K):
    # few operations, because beside a small net each one counts.
    p = outputs.softmax(-1)
    gram = weight @ weight.T
    return (p * torch.addmm(gram.diagonal(), p, gram, alpha=-1)).sum(-1)


def _argmax_error(outputs: Tensor, target: Tensor) -> Tensor:
    labels = target.argmax(-1) if target.ndim == outputs.ndim else target
    return (outputs.argmax(-1) != labels).to(outputs.dtype).mean()


def _sign_error(outputs: Tensor, target: Tensor) -> Tensor:
    # An output of exactly 0 counts as an error (Wen et al. 2023, Prop. 4.1).
    return (outputs * target.reshape(outputs.shape) <= 0).to(outputs.dtype).mean()


cross_entropy = Loss(
    "cross_entropy",
    F.cross_entropy,
    _argmax_error,
    _softmax_factor,
    _softmax_sketch,
    _softmax_trace_with,
)


def _scaled_identity(c: Callable[[Tensor], float]) -> dict[str, Any]:
    return {
        "factor": lambda z: (
            c(z) ** 0.5 * torch.eye(z.shape[-1], dtype=z.dtype, device=z.device).expand(*z.shape, z.shape[-1])
        ),
        "sketch": lambda z, noise: c(z) ** 0.5 * noise,
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
half_squared_error = Loss(
    "half_squared_error",
    lambda z, y: _squared(z, y).sum(-1).mean() / 2,
    _sign_error,
    **_scaled_identity(lambda z: 1.0),
)
mean_squared_error = Loss(
    "mean_squared_error",
    lambda z, y: _squared(z, y).mean(),
    _sign_error,
    **_scaled_identity(lambda z: 2.0 / z.shape[-1]),
)


def _binary_root(outputs: Tensor) -> Tensor:
    log_variance = F.logsigmoid(outputs) + F.logsigmoid(-outputs)
    return (log_variance / 2).exp() / outputs.shape[-1] ** 0.5


def _binary_trace_with(outputs: Tensor, weight: Tensor) -> Tensor:
    p = outputs.sigmoid()
    return (p * (1 - p) / outputs.shape[-1]) @ weight.square().sum(-1)


binary_cross_entropy = Loss(
    "binary_cross_entropy",
    lambda z, y: F.binary_cross_entropy_with_logits(z, y.reshape(z.shape).to(z.dtype)),
    lambda z, y: ((z > 0) != (y.reshape(z.shape) > 0.5)).to(z.dtype).mean(),
    lambda z: torch.diag_embed(_binary_root(z)),
    lambda z, noise: _binary_root(z) * noise,
    _binary_trace_with,
)


SMOOTHING = 0.2  # p, that of Wen et al. 2023


def _smoothed_logistic(outputs: Tensor, target: Tensor) -> Tensor:
    margin = outputs * target.reshape(outputs.shape)
    # In softplus: logsigmoid has no forward-mode second derivative.
    return ((1 - SMOOTHING) * F.softplus(-margin) + SMOOTHING * F.softplus(margin)).mean()


smoothed_logistic = Loss(
    "smoothed_logistic",
    _smoothed_logistic,
    _sign_error,
    lambda z: torch.diag_embed(_binary_root(z)),
    lambda z, noise: _binary_root(z) * noise,
    _binary_trace_with,
)


def recognise(loss_fn: Callable[[Tensor, Tensor], Tensor] | Loss) -> Loss:
    """The structure of a loss given by the user; one without known structure is taken as it is."""
    if isinstance(loss_fn, Loss):
        return loss_fn
    known = {
        F.cross_entropy: cross_entropy,
        F.mse_loss: mean_squared_error,
        F.binary_cross_entropy_with_logits: binary_cross_entropy,
    }
    if loss_fn in known:
        return known[loss_fn]
    reduction = getattr(loss_fn, "reduction", None)
    if reduction not in ("mean", None):
        raise Refused(
            f"loss {type(loss_fn).__name__}: reduction is {reduction!r}, but flattrain works "
            "with means over examples; use reduction='mean'"
        )
    if type(loss_fn) is nn.CrossEntropyLoss:
        return _cross_entropy_of(loss_fn)
    if type(loss_fn) is nn.MSELoss:
        return mean_squared_error
    if type(loss_fn) is nn.BCEWithLogitsLoss and loss_fn.weight is None and loss_fn.pos_weight is None:
        return binary_cross_entropy
    return Loss(getattr(loss_fn, "__name__", type(loss_fn).__name__), loss_fn)


def _cross_entropy_of(loss: nn.CrossEntropyLoss) -> Loss:
    """Label smoothing α and class weights w change the output Hessian of an example by a factor only.

    With labels torch's loss is Σ_i [(1 − α) w_yi ℓ_yi + (α/K) Σ_k w_k ℓ_k] / Σ_i w_yi, ℓ_k = −log p_k, and
    every ℓ_k has the Hessian diag(p) − p pᵀ. Target distributions t count Σ_k w_k t_k each, divided by n.
    """
    alpha, ignored, w = loss.label_smoothing, loss.ignore_index, loss.weight
    smooth = 1.0 if w is None else w.mean()

    def weights(target: Tensor) -> Tensor:
        if torch.is_floating_point(target):
            return torch.ones_like(target[..., 0])
        kept = target != ignored
        return kept.to(torch.get_default_dtype()) if w is None else w[target.where(kept, 0)] * kept

    def curvature(target: Tensor) -> Tensor:
        if torch.is_floating_point(target):
            spread = target * (1 - alpha) + alpha / target.shape[-1]
            return spread.sum(-1) if w is None else spread @ w
        return (1 - alpha) * weights(target) + alpha * smooth * (target != ignored)

    return replace(cross_entropy, mean=loss, weights=weights, curvature=curvature)


def relative_weights(criterion: Loss, target: Tensor, like: Tensor) -> Tensor | None:
    """c_i n / Σ w_i: the output Hessian of example i is this times L Lᵀ in a mean over n; None: 1."""
    if criterion.weights is None:
        return None
    curvature = criterion.curvature or criterion.weights
    return (curvature(target) * len(target) / criterion.weights(target).sum()).to(like.dtype)


def mass(criterion: Loss, target: Tensor) -> float:
    """How much a batch counts in the mean over a data set: its examples, or their weights."""
    return float(len(target) if criterion.weights is None else criterion.weights(target).sum())


def example_slopes(criterion: Loss, loss: Tensor, outputs: Tensor, target: Tensor) -> Tensor:
    """v (n, K) with √w_i ∂ℓ_i/∂f_i, so that mean_i ‖J_iᵀ v_i‖² = Σ w_i ‖∇ℓ_i‖² / Σ w_i."""
    # The loss is separable in the outputs, so row i is the gradient of example i's own loss.
    (delta,) = torch.autograd.grad(loss * len(outputs), outputs, create_graph=True)
    if criterion.weights is None:
        return delta
    w = criterion.weights(target)
    relative = (w * len(w) / w.sum()).to(delta.dtype)
    return delta * relative.where(relative > 0, 1.0).rsqrt()[:, None]


def output_trace(seen: Seen, weight: Tensor) -> Tensor:
    """Tr(W Wᵀ S_i) of each example (n,), for a loss whose output Hessian is known in closed form."""
    assert seen.criterion.trace_with is not None
    trace = seen.criterion.trace_with(seen.outputs, weight)
    scale = relative_weights(seen.criterion, seen.target, trace)
    return trace if scale is None else trace * scale


def root_of(criterion: Loss, outputs: Tensor, target: Tensor, what: str) -> Tensor:
    """L (n, K, C) with S_i = L_i L_iᵀ the Hessian of n · loss in the outputs of example i."""
    _need_root(criterion, outputs, what)
    assert criterion.factor is not None
    root = criterion.factor(outputs)
    scale = relative_weights(criterion, target, root)
    return root if scale is None else root * scale.sqrt()[:, None, None]


def output_root(seen: Seen, what: str) -> Tensor:
    """L of the pass; see `root_of`."""
    return root_of(seen.criterion, seen.outputs, seen.target, what)


def root_vectors(seen: Seen, sketch: Tensor | None, what: str) -> list[Tensor]:
    """The columns of L as C tensors (n, K), or with a sketch ε (n, K) the one tensor L ε."""
    if sketch is None:
        return list(output_root(seen, what).unbind(-1))
    _need_root(seen.criterion, seen.outputs, what)
    if seen.criterion.sketch is None:
        root = output_root(seen, what)
        return [(root @ sketch[:, : root.shape[-1], None])[..., 0]]
    found = seen.criterion.sketch(seen.outputs, sketch)
    scale = relative_weights(seen.criterion, seen.target, found)
    return [found if scale is None else found * scale.sqrt()[:, None]]


def _need_root(criterion: Loss, outputs: Tensor, what: str) -> None:
    if criterion.factor is None:
        raise Refused(
            f"{what} needs the output Hessian of the loss, unknown for {criterion.name!r}; use cross "
            "entropy, squared error or binary cross entropy (flattrain.core.losses)"
        )
    if outputs.ndim != 2:
        raise Refused(
            f"{what} needs outputs (n, K), the network gives {tuple(outputs.shape)}; pass "
            "forward=lambda model, x: ... that returns one row per example"
        )
