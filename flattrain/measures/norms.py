"""Norms of the weights: ‖θ‖², and the path norm of a two-layer net."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from flattrain.ranges import Refused, checked
from flattrain.types import Estimate, Measure, Seen, Statistic


def _path_norm(seen: Seen, noise: Mapping[str, Tensor]) -> Statistic:
    hidden, head = seen.taps["hidden"], seen.taps["head"]
    rows = hidden.weight.square().sum(-1).sqrt()
    return {"path": (rows * head.weight.abs().sum(0)).sum()}


@checked
def weight_norm(*, layer: str | None = None) -> Measure:
    """‖θ‖² = Σ θ² over all trainable parameters, or those of `layer`; weight λ/2 is weight decay λ."""

    def statistic(seen: Seen, noise: Mapping[str, Tensor]) -> Statistic:
        mine = [p for k, p in seen.params.items() if layer is None or k.startswith(f"{layer}.")]
        if not mine:
            raise Refused(
                f"weight_norm: no trainable parameter of a layer {layer!r}; there are {list(seen.params)}"
            )
        return {"norm2": torch.stack([p.square().sum() for p in mine]).sum()}

    whose = "all trainable parameters" if layer is None else f"the trainable parameters of {layer!r}"
    return Measure("weight_norm", statistic, lambda s: Estimate(s["norm2"]), f"sum of squares of {whose}")


def path_norm() -> Measure:
    """Σ_j ‖w_j‖ |a_j| over the hidden units of a two-layer net, biases apart (Wen et al. 2023, L. 3.1)."""
    return Measure(
        "path_norm",
        _path_norm,
        lambda s: Estimate(s["path"]),
        "sum over hidden units of the norm of incoming weights times the outgoing weight, biases apart",
        layers=("hidden", "head"),
    )
