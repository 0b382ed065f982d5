"""Tr of the mean tangent kernel: the Gauss–Newton trace with the identity for the output Hessian S.

    (1/n) Σ_i ‖J_i‖_F² = (1/n) Σ_i E_v ‖J_iᵀ v‖²,     J_i = ∂f_i/∂θ (K × P),  v with independent ±1 entries

It knows nothing of the loss: no confidence in a prediction makes it smaller, as it does Tr F = mean
Tr J_iᵀ S_i J_i, where S_i = diag p − p pᵀ → 0. What a penalty on Tr F does by S alone, one on this does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from flattrain.core import ghost
from flattrain.core.jacobians import unit_rows
from flattrain.core.probes import over_outputs
from flattrain.core.trace import mean_of_probes
from flattrain.ranges import Count, checked
from flattrain.types import Draw, Estimate, Measure, Seen, Statistic


@checked
def jacobian_trace(
    *,
    columns: Literal["exact", "sketch"] = "exact",
    probes: Count = 1,
    uncovered: Literal["refuse", "ignore", "dense"] = "refuse",
) -> Measure:
    """mean ‖J_i‖_F² over all trainable parameters; by K pullbacks, or by `probes` of them at random."""

    def statistic(seen: Seen, noise: Mapping[str, Tensor]) -> Statistic:
        vectors = unit_rows(seen.outputs) if columns == "exact" else list(noise.values())
        squares = ghost.squares(
            part.piece for part in ghost.pieces(seen, vectors, "jacobian_trace", uncovered)
        )
        return {"trace": squares.sum(1).mean() if columns == "exact" else squares.mean(0)}

    def draws(seen: Seen) -> dict[str, Draw]:
        return {} if columns == "exact" else {str(k): over_outputs(seen.outputs) for k in range(probes)}

    return Measure(
        "jacobian_trace",
        statistic,
        lambda s: Estimate(s["trace"]) if columns == "exact" else mean_of_probes(s["trace"]),
        f"mean over examples of the squared Frobenius norm of the Jacobian of the outputs, {columns}",
        combine="examples",
        layers=None,
        draws=draws,
        order=2,
    )
