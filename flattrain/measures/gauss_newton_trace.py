"""Tr G of the Gauss–Newton (= Fisher) matrix of the mean loss.

    Tr G = mean_i Σ_c ‖∂(L_i[:, c]ᵀ f_i)/∂θ‖² = mean_i E_ε ‖∂(ε_iᵀ L_iᵀ f_i)/∂θ‖²

with S = L Lᵀ the output Hessian and ε Rademacher. The norms come from the layers' structure (core.ghost).
Exact with K vector-Jacobian products; a sketch takes one, unbiased in value and in gradient, since ε does not
depend on the parameters; its standard error is that between sketches.

Tr H = Tr G for piecewise-linear nets, and for any net at interpolation, where the residuals vanish: it is the
sharpness of Wen et al. 2023, Lemma 4.1, (2/n) Σ ‖∇f_i‖² for squared error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from flattrain.core import ghost
from flattrain.core.losses import root_vectors
from flattrain.core.probes import over_outputs
from flattrain.core.trace import mean_of_probes
from flattrain.ranges import Count, checked
from flattrain.types import Draw, Estimate, Measure, Seen, Statistic


@checked
def gauss_newton_trace(
    *,
    columns: Literal["exact", "sketch"] = "exact",
    probes: Count = 1,
    layers: tuple[str, ...] | None = None,
    uncovered: Literal["refuse", "ignore", "dense"] = "refuse",
) -> Measure:
    """Tr G over the parameters of `layers` (None: all); `probes` is the number of sketches, if any."""
    policy = uncovered if layers is None else "ignore"

    def statistic(seen: Seen, noise: Mapping[str, Tensor]) -> Statistic:
        what = "gauss_newton_trace"
        if columns == "exact":
            vectors = root_vectors(seen, None, what)
        else:
            vectors = [v for eps in noise.values() for v in root_vectors(seen, eps, what)]
        squares = ghost.squares(part.piece for part in ghost.pieces(seen, vectors, what, policy))
        return {"trace": squares.sum(1).mean() if columns == "exact" else squares.mean(0)}

    def draws(seen: Seen) -> dict[str, Draw]:
        if columns == "exact":
            return {}
        return {str(k): over_outputs(seen.outputs) for k in range(probes)}

    return Measure(
        "gauss_newton_trace",
        statistic,
        lambda s: Estimate(s["trace"]) if columns == "exact" else mean_of_probes(s["trace"]),
        f"trace of the Gauss–Newton matrix of the mean loss, {columns}",
        layers=None if layers is None else tuple(layers),
        draws=draws,
        order=2,
    )
