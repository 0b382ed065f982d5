"""What the top eigenvalue says about a two-layer ReLU net as a function, and which units live.

For f(x) = Σ_k v_k relu(w_k · x + b_k) + β, the loss ½(f − y)², n points of norm at most R and λ the top
eigenvalue of its Hessian, with φ_ik = relu(w_k · x_i + b_k) and 1_ik = 1(φ_ik > 0):

    W = Σ_k |v_k| · mean_i φ_ik · √(p_k² + ‖mean_i 1_ik x_i‖²),   p_k = mean_i 1_ik
    W ≤ (λ − 1)/2 + ½ √(R² + 1) √(2L)          at every θ that is on no kink

since λ of the Gauss–Newton part is at least ‖mean_i ∇f_i‖² = 1 + Σ_k (A_k² + B_k²) ≥ 1 + 2 Σ_k A_k B_k, with
A_k = mean_i φ_ik and B_k the norm of the other factors, and the residual part lowers it by at most the last
term (our form, with a sharper constant, of a bound of arXiv 2506.20779).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from flattrain.measures.hessian_top_eigenvalue import hessian_top_eigenvalue
from flattrain.ranges import Count, Refused, checked
from flattrain.types import Estimate, Measure, Seen, Statistic


@checked
def path_inequality(*, products: Count = 100) -> Measure:
    """W over its bound, at most 1; λ by `products` Lanczos products, which is never above the true one."""
    eigenvalue = hessian_top_eigenvalue(products=products)

    def statistic(seen: Seen, noise: Mapping[str, Tensor]) -> Statistic:
        hidden, head = seen.taps["hidden1"], seen.taps["head"]
        if seen.criterion.name != "half_squared_error" or head.bias is None or hidden.bias is None:
            raise Refused("path_inequality needs biases in both layers and the loss half_squared_error")
        x, phi = hidden.input, hidden.output.relu()
        active = (phi > 0).to(phi)
        share, centre = active.mean(0), active.T @ x / len(x)
        path = head.weight[0].abs() * phi.mean(0) * (share.square() + centre.square().sum(1)).sqrt()
        largest = x.square().sum(1).amax()
        top = eigenvalue.statistic(seen, noise)["eigenvalue"]
        bound = (top - 1) / 2 + ((largest + 1) * 2 * seen.loss).sqrt() / 2
        return {"ratio": path.sum() / bound}

    return Measure(
        "path_inequality",
        statistic,
        lambda s: Estimate(s["ratio"]),
        "weighted path norm of the net over its bound by the top eigenvalue, at most 1",
        combine="whole",
        layers=("hidden1", "head"),
        draws=eigenvalue.draws,
        order=3,
    )


def dead_units() -> Measure:
    """Share of hidden units that no example activates."""

    def statistic(seen: Seen, noise: Mapping[str, Tensor]) -> Statistic:
        return {"alive": (seen.taps["hidden1"].output > 0).to(seen.loss).mean(0)}

    return Measure(
        "dead_units",
        statistic,
        lambda s: Estimate((s["alive"] == 0).to(torch.float64).mean()),
        "share of units of the first hidden layer that are active on no example",
        layers=("hidden1",),
    )
