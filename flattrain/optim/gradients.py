"""Gradients between passes: in whose memory they lie, and whether a step has used them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from flattrain.optim.sharded import length


def own(g: Tensor) -> Tensor:
    """g in memory of its own: with gradient_as_bucket_view, the next pass writes where this one's g lies."""
    return g.clone() if g._is_view() else g


def spend(grads: Sequence[Tensor]) -> None:
    """Remember that a step has used these, as they are now."""
    for g in grads:
        g._spent = g._version  # type: ignore[attr-defined]


def unspent(grads: Sequence[Tensor]) -> bool:
    """Whether any, not zero, has been computed since a step used them."""
    return any(getattr(g, "_spent", None) != g._version for g in grads) and bool(length(grads) > 0)
