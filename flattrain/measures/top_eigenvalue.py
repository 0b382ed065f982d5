"""λ₁: the largest algebraic eigenvalue of the Hessian of the mean loss, by Lanczos.

Stopped on the residual: some eigenvalue lies within ‖Hv − λv‖ of the value, and that residual is what is
reported in the place of a standard error.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Generator, Tensor

from flattrain.core.lanczos import largest
from flattrain.ranges import Count, Positive, checked
from flattrain.types import Estimate, Spectral


@checked
def top_eigenvalue(*, tolerance: Positive = 1e-3, max_products: Count = 100) -> Spectral:
    """λ₁ with ‖Hv − λv‖ ≤ tolerance · λ, or the best of `max_products` Hessian-vector products."""

    def estimate(matvec: Callable[[Tensor], Tensor], dim: int, generator: Generator) -> Estimate:
        found = largest(matvec, dim, generator, tolerance=tolerance, max_products=max_products)
        return Estimate(found.value, found.residual)

    return Spectral(
        "top_eigenvalue",
        estimate,
        f"largest eigenvalue of the Hessian of the mean loss, Lanczos to a residual of {tolerance:g} "
        "(the residual stands as its error)",
    )
