"""Perturbed parameters w + D v and the loss there: what the two kinds of sharpness have in common.

D = I, or D = diag|w| for adaptive sharpness; v lives in an ℓ2 or ℓ∞ ball or is noise of that shape.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

from torch import Tensor

from flattrain.types import Params, Seen

Scale: TypeAlias = Literal["plain", "adaptive"]


def scales(params: Params, scale: Scale) -> Params:
    """The diagonal of D: 1, or |w|."""
    return {k: p.abs() if scale == "adaptive" else p.new_ones(()).expand(p.shape) for k, p in params.items()}


def shifted(params: Params, diagonal: Params, v: Params) -> Params:
    """w + D v."""
    return {k: p + diagonal[k] * v[k] for k, p in params.items()}


def normalised(outputs: Tensor) -> Tensor:
    """Logits less their mean over classes, divided by their ℓ2 norm: one unit vector per example."""
    centred = outputs - outputs.mean(-1, keepdim=True)
    return centred / centred.norm(dim=-1, keepdim=True)


def loss_of(seen: Seen, logits: Literal["raw", "normalised"]) -> Callable[[Params, Any, Tensor], Tensor]:
    """(params, x, y) -> the mean loss, of the logits as they are or normalised."""

    def loss(params: Params, x: Any, y: Tensor) -> Tensor:
        outputs = seen.run(params, x)
        return seen.criterion.mean(normalised(outputs) if logits == "normalised" else outputs, y)

    return loss
