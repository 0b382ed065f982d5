"""λ₁(G), the largest eigenvalue of the Gauss–Newton (= Fisher) matrix of the mean loss.

G shares its nonzero spectrum with K/n, K the Gram matrix of the per-example gradients of the output Hessian's
root columns (core.ghost), so Lanczos runs on K, n C × n C, and no product takes a pass through the network.
Never above λ₁(G); the residual ‖(K/n) v − λ v‖ stands as the error, which for an isolated λ₁ is of its square
over the gap.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from flattrain.core.lanczos import top_ritz_vector
from flattrain.core.probes import over_outputs
from flattrain.measures.gauss_newton import gauss_newton_gram
from flattrain.ranges import Count, checked
from flattrain.types import Draw, Estimate, Measure, Seen, Statistic


@checked
def gauss_newton_top_eigenvalue(
    *,
    products: Count = 30,
    layers: tuple[str, ...] | None = None,
    uncovered: Literal["refuse", "ignore", "dense"] = "refuse",
) -> Measure:
    """λ₁(G) over the parameters of `layers` (None: all), by `products` products from a drawn start."""

    def statistic(seen: Seen, noise: Mapping[str, Tensor]) -> Statistic:
        gram = gauss_newton_gram(seen, "gauss_newton_top_eigenvalue", layers, uncovered)
        start = noise["start"].flatten()[: len(gram)]
        v = top_ritz_vector(lambda u: gram.detach() @ u, start, products).detach()
        image = gram @ v
        value = v @ image
        return {"eigenvalue": value, "residual": (image - value * v).norm().detach()}

    def draws(seen: Seen) -> dict[str, Draw]:
        return {"start": over_outputs(seen.outputs)}

    return Measure(
        "gauss_newton_top_eigenvalue",
        statistic,
        lambda s: Estimate(s["eigenvalue"], s["residual"]),
        f"largest eigenvalue of the Gauss–Newton matrix of the mean loss, by {products} Lanczos products "
        "from a random start (the residual stands as its error)",
        combine="whole",
        layers=None if layers is None else tuple(layers),
        draws=draws,
        order=2,
    )
