"""The gradient as it is."""

from __future__ import annotations

from flattrain.types import Rule


def plain() -> Rule:
    """g = ∇L(θ)."""
    return Rule(lambda grad_fn: grad_fn)
