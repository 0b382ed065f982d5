"""How far a network is from the least Lipschitz constant that its fit to the targets demands.

    b = max_{i≠j} (‖y_i − y_j‖ − r_i − r_j)/‖x_i − x_j‖,      r_i = ‖f(x_i) − y_i‖

is a lower bound on ‖f(x_i) − f(x_j)‖/‖x_i − x_j‖ for the pair that attains it, so by the
mean value inequality

    slack = max over the segment [x_i, x_j] of ‖∂f/∂x‖₂ − b >= 0

As the fit improves, b rises and the Jacobian must follow: the mechanism behind Theorem 5.1 of MacDonald,
Valmadre & Lucey (arXiv 2305.14683), in a form derived here. The maximum is taken over `points` + 1 points of
the segment, so a slack may fall below 0 by as much as the norm varies between two of them. b is negative
while residuals are large.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from flattrain.core.jacobians import gram, input_jacobian
from flattrain.measures.input_jacobian import spectral_norms
from flattrain.ranges import Count, Refused, checked
from flattrain.types import Estimate, Measure, Seen, Statistic


@checked
def lipschitz_slack(*, points: Count = 64) -> Measure:
    """max ‖∂f/∂x‖₂ on the segment of the pair that demands the most, less what it demands."""

    def statistic(seen: Seen, noise: Mapping[str, Tensor]) -> Statistic:
        x, y, f = seen.inputs, seen.target, seen.outputs
        if not isinstance(x, Tensor) or not y.is_floating_point() or y.shape != f.shape:
            raise Refused("lipschitz_slack compares outputs with real targets of the same shape (n, K)")
        gaps = torch.cdist(y, y)
        residual = (f - y).square().sum(-1).sqrt()
        distance = torch.cdist(x.flatten(1), x.flatten(1))
        alone = torch.eye(len(x), dtype=torch.bool, device=x.device) | (distance == 0)
        demand = (gaps - residual[:, None] - residual) / distance.where(~alone, 1.0)
        demand = demand.where(~alone, -torch.inf)
        i, j = divmod(int(demand.argmax()), len(x))
        share = torch.linspace(0, 1, points + 1, dtype=x.dtype, device=x.device)
        path = x[i] + share.reshape(-1, *(1,) * (x.ndim - 1)) * (x[j] - x[i])
        jacobian = input_jacobian(seen._replace(inputs=path), "lipschitz_slack")
        return {"slack": spectral_norms(gram(jacobian)).max() - demand[i, j]}

    return Measure(
        "lipschitz_slack",
        statistic,
        lambda s: Estimate(s["slack"]),
        f"largest spectral norm of the Jacobian on {points + 1} points between the two examples whose "
        "targets and residuals demand the most, less the demand",
        combine="whole",
        order=2,
    )
