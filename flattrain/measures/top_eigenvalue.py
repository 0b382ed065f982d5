"""The extreme eigenvalues of the Hessian of the mean loss, by Lanczos.

    top_eigenvalue        λ₁, the largest algebraic one
    smallest_eigenvalue   λ_min, which is negative away from a minimum

Stopped on the residual: some eigenvalue lies within ‖Hv − λv‖ of the value, and that residual is what is
reported in the place of a standard error. The error itself is of its square over the gap: with an isolated λ₁
a tolerance of 3e-2 gives a value right to about 1e-3, for two thirds of the products; where eigenvalues
cluster at the top it does not, and 3 % is what it says.
"""

from __future__ import annotations

from torch import Generator

from flattrain.core.lanczos import largest, smallest
from flattrain.ranges import Count, Positive, checked
from flattrain.types import Estimate, Operator, Spectral


@checked
def top_eigenvalue(*, tolerance: Positive = 1e-3, max_products: Count = 100) -> Spectral:
    """λ₁ with ‖Hv − λv‖ ≤ tolerance · |λ|, or the best of `max_products` Hessian-vector products."""

    def estimate(operator: Operator, generator: Generator) -> Estimate:
        found = largest(operator, generator, tolerance=tolerance, max_products=max_products)
        return Estimate(found.value, found.residual)

    return Spectral(
        "top_eigenvalue",
        estimate,
        f"largest eigenvalue of the Hessian of the mean loss, Lanczos to a residual of {tolerance:g} "
        "(the residual stands as its error)",
    )


@checked
def smallest_eigenvalue(*, tolerance: Positive = 1e-3, max_products: Count = 100) -> Spectral:
    """λ_min with ‖Hv − λv‖ ≤ tolerance · |λ|, or the best of `max_products` Hessian-vector products."""

    def estimate(operator: Operator, generator: Generator) -> Estimate:
        found = smallest(operator, generator, tolerance=tolerance, max_products=max_products)
        return Estimate(found.value, found.residual)

    return Spectral(
        "smallest_eigenvalue",
        estimate,
        f"smallest eigenvalue of the Hessian of the mean loss, Lanczos to a residual of {tolerance:g} "
        "(the residual stands as its error)",
    )
