"""What rows of outputs, examples and batches count in a mean loss Σ_it w_it ℓ_it / Σ_it w_it."""

from __future__ import annotations

from torch import Tensor

from flattrain.types import Loss


def mass(criterion: Loss, target: Tensor) -> float:
    """How much a batch counts in the mean over a data set, up to a factor: its rows, or their weights.

    A loss of unknown structure is taken as a mean over examples, however many entries a target has.
    """
    if criterion.weights is not None:
        return float(criterion.weights(target).sum())
    return float(len(target) if criterion.factor is None else target.numel())


def example_weights(criterion: Loss, outputs: Tensor, target: Tensor) -> Tensor:
    """w_i (n,), the weight of an example: that of all its rows."""
    if criterion.weights is None:
        return outputs.new_full(outputs.shape[:1], outputs.shape[1:-1].numel())
    w = criterion.weights(target).to(outputs.dtype)
    return w if w.ndim == 1 else w.flatten(1).sum(1)


def relative_weights(criterion: Loss, outputs: Tensor, target: Tensor) -> Tensor | None:
    """w_i n / Σ w_i (n,); None: 1."""
    if criterion.weights is None:
        return None
    w = example_weights(criterion, outputs, target)
    return w * len(w) / w.sum()


def row_weights(criterion: Loss, outputs: Tensor, target: Tensor) -> Tensor | None:
    """w_it n / Σ w_it, of the shape of the outputs less K: what a row counts in n · loss; None: 1."""
    rows = outputs.shape[:-1]
    if criterion.weights is None:
        return None if len(rows) == 1 else outputs.new_full(rows, rows[0] / rows.numel())
    w = criterion.weights(target)
    return (w * rows[0] / w.sum()).to(outputs.dtype)


def row_scale(criterion: Loss, outputs: Tensor, target: Tensor) -> Tensor | None:
    """n · loss has the Hessian L Lᵀ times this in each row of outputs: `row_weights` times c / w; None: 1."""
    if criterion.weights is None or criterion.curvature is None:
        return row_weights(criterion, outputs, target)
    return (criterion.curvature(target) * len(outputs) / criterion.weights(target).sum()).to(outputs.dtype)
