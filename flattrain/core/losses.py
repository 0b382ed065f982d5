"""Losses with the structure that exact curvature needs: the Hessian of the loss in the network's outputs.

For one row of outputs z ∈ ℝᴷ and S = ∇²_z ℓ = L Lᵀ:

    cross entropy   S = diag(p) − p pᵀ   (p = softmax z; any target distribution), roots in core.softmax
    squared error   S = c I,   L = √c I          (c = 2 for Σ_k (z_k − y_k)²)
    logistic        S = diag(σ(z) σ(−z))         (core.logistic)

A sketch is L ε with ε Rademacher, E[L ε εᵀ Lᵀ] = S, for any root. Roots stay on the graph: detaching them
loses the term ∂S/∂θ of a penalty's gradient.

Outputs are (n, K), or (n, T, K) with a row for each of T tokens, or more positions: the K outputs come last,
where torch's own cross entropy has the classes second. An example is a whole sequence, and the loss the mean
over all rows that count, as torch takes it:

    mean loss     L = Σ_it w_it ℓ_it / Σ_it w_it             w = 0 where ignored, class weights, or 1
    its examples  ℓ_i = Σ_t w_it ℓ_it / w_i,  w_i = Σ_t w_it, so that L = Σ_i w_i ℓ_i / Σ_i w_i
    Fisher        F = Σ_it w_it J_itᵀ S_it J_it / Σ_it w_it   (= Gauss–Newton: S is block diagonal over rows)

Per-example gradients and SAM are those of sequences. Batches count by Σ w: by tokens, not by sequences.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flattrain.core import softmax
from flattrain.core.logistic import binary_root, binary_trace_with, smoothed
from flattrain.core.weights import relative_weights, row_scale
from flattrain.ranges import Refused
from flattrain.types import Loss, Seen

Mean = Callable[[Tensor, Tensor], Tensor]
MOST_ENTRIES = 2**32  # of a batch's roots: 17 GB in float32


def _argmax_error(outputs: Tensor, target: Tensor) -> Tensor:
    labels = target.argmax(-1) if target.ndim == outputs.ndim else target
    return (outputs.argmax(-1) != labels).to(outputs.dtype).mean()


def _sign_error(outputs: Tensor, target: Tensor) -> Tensor:
    if outputs.ndim == 2 and outputs.shape[1] > 1:
        return _argmax_error(outputs, target)
    # An output of exactly 0 counts as an error (Wen et al. 2023, Prop. 4.1).
    return (outputs * target.reshape(outputs.shape) <= 0).to(outputs.dtype).mean()


def _rows(mean: Mean) -> Mean:
    """A cross entropy of outputs (N, K), for outputs (n, …, K)."""

    def of_rows(outputs: Tensor, target: Tensor) -> Tensor:
        if outputs.ndim <= 2:
            return mean(outputs, target)
        if target.shape not in (outputs.shape[:-1], outputs.shape):
            raise Refused(
                f"cross entropy of outputs {tuple(outputs.shape)} with targets {tuple(target.shape)}: "
                "classes come last, outputs (n, …, classes) and labels (n, …); where the model has them "
                "second, as torch does, pass forward=lambda model, x: model(x).movedim(1, -1)"
            )
        return mean(outputs.flatten(0, -2), target.flatten(0, outputs.ndim - 2))

    return of_rows


def _every_label(outputs: Tensor, target: Tensor) -> Tensor:
    # torch ignores the label −100 unless told another; here one that is no class is an error.
    return F.cross_entropy(outputs, target, ignore_index=-(2**62))


cross_entropy = Loss(
    "cross_entropy",
    _rows(_every_label),
    _argmax_error,
    softmax.factor,
    softmax.sketch,
    softmax.trace_with,
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


binary_cross_entropy = Loss(
    "binary_cross_entropy",
    lambda z, y: F.binary_cross_entropy_with_logits(z, y.reshape(z.shape).to(z.dtype)),
    lambda z, y: ((z > 0) != (y.reshape(z.shape) > 0.5)).to(z.dtype).mean(),
    lambda z: torch.diag_embed(binary_root(z)),
    lambda z, noise: binary_root(z) * noise,
    binary_trace_with,
)


smoothed_logistic = Loss(
    "smoothed_logistic",
    smoothed,
    _sign_error,
    lambda z: torch.diag_embed(binary_root(z)),
    lambda z, noise: binary_root(z) * noise,
    binary_trace_with,
)


def recognise(loss_fn: Callable[[Tensor, Tensor], Tensor] | Loss) -> Loss:
    """The structure of a loss given by the user; one without known structure is taken as it is."""
    if isinstance(loss_fn, Loss):
        return loss_fn
    known = {
        F.cross_entropy: _of_torch(nn.CrossEntropyLoss()),
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
        return _of_torch(loss_fn)
    if type(loss_fn) is nn.MSELoss:
        return mean_squared_error
    if type(loss_fn) is nn.BCEWithLogitsLoss and loss_fn.weight is None and loss_fn.pos_weight is None:
        return binary_cross_entropy
    return Loss(getattr(loss_fn, "__name__", type(loss_fn).__name__), loss_fn)


def classes_last(loss: nn.CrossEntropyLoss) -> Loss:
    """A cross entropy with its options, for outputs (n, …, K) whatever their shape.

    Label smoothing α and class weights w change the output Hessian of a row by a factor only. With labels
    torch's loss is Σ_i [(1 − α) w_yi ℓ_yi + (α/K) Σ_k w_k ℓ_k] / Σ_i w_yi, ℓ_k = −log p_k, and every ℓ_k has
    the Hessian diag(p) − p pᵀ. Target distributions t count Σ_k w_k t_k each, divided by n.
    """
    if type(loss) is not nn.CrossEntropyLoss or loss.reduction != "mean":
        raise Refused(f"classes_last: it takes an nn.CrossEntropyLoss with reduction='mean', not {loss}")
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

    return replace(cross_entropy, mean=_rows(loss), weights=weights, curvature=curvature)


def _of_torch(loss: nn.CrossEntropyLoss) -> Loss:
    """The same for a loss given as torch's, which has the classes second: refused where both would fit."""
    found = classes_last(loss)

    def mean(outputs: Tensor, target: Tensor) -> Tensor:
        second = outputs.shape[:1] + outputs.shape[2:]
        if outputs.ndim > 2 and (
            target.shape == outputs.shape or target.shape == outputs.shape[:-1] == second
        ):
            raise Refused(
                f"cross entropy of outputs {tuple(outputs.shape)} with targets {tuple(target.shape)}: "
                "shapes do not tell whether the classes are last, as here, or second, as in torch; have the "
                "model give them last and say flattrain.core.losses.classes_last(nn.CrossEntropyLoss())"
            )
        return found.mean(outputs, target)

    return replace(found, mean=mean)


def example_slopes(criterion: Loss, loss: Tensor, outputs: Tensor, target: Tensor) -> Tensor:
    """v (n, …, K) with √w_i ∂ℓ_i/∂f_i, so that mean_i ‖J_iᵀ v_i‖² = Σ w_i ‖∇ℓ_i‖² / Σ w_i."""
    # The loss is separable over examples, so v_i is the gradient of example i's own loss.
    (delta,) = torch.autograd.grad(loss * len(outputs), outputs, create_graph=True)
    relative = relative_weights(criterion, outputs, target)
    if relative is None:
        return delta
    return delta * relative.where(relative > 0, 1.0).rsqrt().reshape(-1, *[1] * (delta.ndim - 1))


def output_trace(seen: Seen, weight: Tensor) -> Tensor:
    """Tr(W Wᵀ S) of each row of outputs (n, …), for a loss whose output Hessian is known in closed form."""
    assert seen.criterion.trace_with is not None
    rows = seen.outputs.shape[:-1]
    trace = seen.criterion.trace_with(seen.outputs.flatten(0, -2), weight).reshape(rows)
    scale = row_scale(seen.criterion, seen.outputs, seen.target)
    return trace if scale is None else trace * scale


def root_of(criterion: Loss, outputs: Tensor, target: Tensor, what: str) -> Tensor:
    """L (n, …, K, C) with L Lᵀ the Hessian of n · loss in each row of outputs."""
    _need_root(criterion, outputs, what)
    _need_room(outputs, outputs.shape[-1], what)
    assert criterion.factor is not None
    root = criterion.factor(outputs)
    scale = row_scale(criterion, outputs, target)
    return root if scale is None else root * scale.sqrt()[..., None, None]


def sketch_of(criterion: Loss, outputs: Tensor, target: Tensor, noise: Tensor, what: str) -> Tensor:
    """L ε (n, …, K) of any such root, for ε (n, …, K) of mean 0 and covariance I."""
    _need_root(criterion, outputs, what)
    if criterion.sketch is None:
        root = root_of(criterion, outputs, target, what)
        return (root @ noise[..., : root.shape[-1], None])[..., 0]
    found = criterion.sketch(outputs, noise)
    scale = row_scale(criterion, outputs, target)
    return found if scale is None else found * scale.sqrt()[..., None]


def output_root(seen: Seen, what: str) -> Tensor:
    """L of the pass; see `root_of`."""
    return root_of(seen.criterion, seen.outputs, seen.target, what)


def root_vectors(seen: Seen, sketch: Tensor | None, what: str) -> list[Tensor]:
    """The columns of each example's root, in the shape of the outputs; with a sketch ε the one L ε.

    Outputs (n, K) have C of them, those of one row. Of T rows T · C: those of row t are zero elsewhere.
    """
    if sketch is not None:
        return [sketch_of(seen.criterion, seen.outputs, seen.target, sketch, what)]
    root = output_root(seen, what)
    if root.ndim == 3:
        return list(root.unbind(-1))
    _need_room(seen.outputs, root.shape[1:-2].numel() * root.shape[-1], what)
    n, k, c = len(root), *root.shape[-2:]
    rows = root.reshape(n, -1, k, c)
    own = torch.eye(rows.shape[1], dtype=root.dtype, device=root.device)[None, :, None, :, None]
    spread = rows[:, :, :, None] * own  # (n, T, K, T, C)
    return list(spread.flatten(3).reshape(*seen.outputs.shape, -1).unbind(-1))


def need_root(criterion: Loss, what: str) -> None:
    """Refuse a loss whose output Hessian is not known."""
    if criterion.factor is None:
        raise Refused(
            f"{what} needs the output Hessian of the loss, unknown for {criterion.name!r}; use cross "
            "entropy, squared error or binary cross entropy (flattrain.core.losses)"
        )


def _need_root(criterion: Loss, outputs: Tensor, what: str) -> None:
    need_root(criterion, what)
    if outputs.ndim < 2:
        raise Refused(
            f"{what} needs outputs (n, K) or (n, tokens, K), the network gives {tuple(outputs.shape)}; pass "
            "forward=lambda model, x: ... that returns one row per example or token"
        )


def _need_room(outputs: Tensor, columns: int, what: str) -> None:
    if outputs.numel() * columns > MOST_ENTRIES:
        raise Refused(
            f"{what}: roots of {columns} columns for outputs {tuple(outputs.shape)} do not fit; take "
            "columns='sketch' where there is one, or smaller batches of shorter sequences"
        )
