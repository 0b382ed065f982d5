"""The extreme eigenvalues of the Hessian of the mean loss, by Lanczos.

    top_eigenvalue        λ₁, the largest algebraic one
    smallest_eigenvalue   λ_min, which is negative away from a minimum

Stopped on the residual: some eigenvalue lies within ‖Hv − λv‖ of the value, and that residual is what is
reported in the place of a standard error. The error itself is of its square over the gap: with an isolated λ₁
a tolerance of 3e-2 gives a value right to about 1e-3, for two thirds of the products; where eigenvalues
cluster at the top it does not, and 3 % is what it says.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Generator

from flattrain.core.lanczos import Eigenvalue, largest, smallest
from flattrain.ranges import Count, Positive, checked
from flattrain.types import Estimate, Operator, Spectral


def _extreme(name: str, solve: Callable[..., Eigenvalue], tolerance: float, max_products: int) -> Spectral:
    def estimate(operator: Operator, generator: Generator) -> Estimate:
        found = solve(operator, generator, tolerance=tolerance, max_products=max_products)
        return Estimate(found.value, found.residual)

    return Spectral(
        name,
        estimate,
        f"{solve.__name__} eigenvalue of the Hessian of the mean loss, Lanczos to a residual of "
        f"{tolerance:g} (the residual stands as its error)",
    )


@checked
def top_eigenvalue(*, tolerance: Positive = 1e-3, max_products: Count = 100) -> Spectral:
    """λ₁ with ‖Hv − λv‖ ≤ tolerance · |λ|, or the best of `max_products` Hessian-vector products."""
    return _extreme("top_eigenvalue", largest, tolerance, max_products)


@checked
def smallest_eigenvalue(*, tolerance: Positive = 1e-3, max_products: Count = 100) -> Spectral:
    """λ_min with ‖Hv − λv‖ ≤ tolerance · |λ|, or the best of `max_products` Hessian-vector products."""
    return _extreme("smallest_eigenvalue", smallest, tolerance, max_products)
