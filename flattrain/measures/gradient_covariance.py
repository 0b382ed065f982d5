"""Tr C, the trace of the covariance of per-example gradients, and their second moment.

    Tr C = mean_i ‖∇ℓ_i‖² − ‖∇L‖²,      C = Cov_i[∇ℓ_i], centred

Under class weights the means are weighted as the loss is. The norms come from the layers' structure
(core.ghost): no per-example gradient is formed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from flattrain.core import ghost
from flattrain.core.losses import example_slopes
from flattrain.ranges import checked
from flattrain.types import Estimate, Measure, Seen, Statistic


@checked
def gradient_covariance_trace(*, uncovered: Literal["refuse", "dense"] = "refuse") -> Measure:
    """Tr C over all trainable parameters."""

    def statistic(seen: Seen, noise: Mapping[str, Tensor]) -> Statistic:
        what = "gradient_covariance_trace"
        parts = ghost.pieces(
            seen, [example_slopes(seen.criterion, seen.loss, seen.outputs, seen.target)], what, uncovered
        )
        live = list(seen.params.values())
        mean = torch.autograd.grad(seen.loss, live, create_graph=True, materialize_grads=True)
        return {
            "squares": ghost.squares(part.piece for part in parts).mean(),
            **{f"mean.{name}": g for name, g in zip(seen.params, mean, strict=True)},
        }

    def reduce(s: Statistic) -> Estimate:
        mean = [value.square().sum() for name, value in s.items() if name.startswith("mean.")]
        return Estimate(s["squares"] - torch.stack(mean).sum())

    return Measure(
        "gradient_covariance_trace",
        statistic,
        reduce,
        "trace of the centred covariance of per-example gradients",
        layers=None,
        order=2,
    )
