"""Frobenius norm of the Gauss–Newton (= Fisher) matrix, exactly: ‖G‖_F = ‖K‖_F / n.

K is the Gram matrix of the per-example gradients of the output Hessian's root columns (core.ghost), whose
nonzero spectrum G has. At interpolation (zero residuals) G *is* the Hessian.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from flattrain.core import ghost
from flattrain.core.losses import root_vectors
from flattrain.ranges import checked
from flattrain.types import Estimate, Measure, Seen, Statistic


def gauss_newton_gram(
    seen: Seen, what: str, layers: tuple[str, ...] | None, uncovered: ghost.Uncovered
) -> Tensor:
    """K/n (n C, n C), with the nonzero spectrum of G over the parameters of `layers` (None: all)."""
    policy = uncovered if layers is None else "ignore"
    parts = ghost.pieces(seen, root_vectors(seen, None, what), what, policy)
    return ghost.gram(part.piece for part in parts) / len(seen.outputs)


@checked
def gauss_newton_frobenius(
    *,
    layers: tuple[str, ...] | None = None,
    uncovered: Literal["refuse", "ignore", "dense"] = "refuse",
) -> Measure:
    """‖G‖_F over `layers` (None: all)."""

    def statistic(seen: Seen, noise: Mapping[str, Tensor]) -> Statistic:
        gram = gauss_newton_gram(seen, "gauss_newton_frobenius", layers, uncovered)
        return {"frobenius": gram.square().sum().sqrt()}

    return Measure(
        "gauss_newton_frobenius",
        statistic,
        lambda s: Estimate(s["frobenius"]),
        "Frobenius norm of the Gauss–Newton matrix (the Hessian, at interpolation)",
        combine="whole",
        layers=None if layers is None else tuple(layers),
        order=2,
    )
