"""Norms of the weights: ‖θ‖², the path norm of a two-layer net, and which inputs its units look at."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from flattrain.ranges import Count, Refused, checked
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


@checked
def column_ratio(*, relevant: Count = 2) -> Measure:
    """min_{j ≤ r} ‖W e_j‖ / max_{j > r} ‖W e_j‖ of the hidden weights, r = `relevant`.

    Large where every unit looks at the first r inputs alone (Wen et al. 2023, Figure 2b: on sparse parity).
    """

    def statistic(seen: Seen, noise: Mapping[str, Tensor]) -> Statistic:
        columns = seen.taps["hidden"].weight.square().sum(0).sqrt()
        if relevant >= len(columns):
            raise Refused(f"column_ratio: relevant must be below the {len(columns)} inputs, got {relevant}")
        return {"ratio": columns[:relevant].min() / columns[relevant:].max()}

    return Measure(
        "column_ratio",
        statistic,
        lambda s: Estimate(s["ratio"]),
        f"smallest norm of the first {relevant} columns of the hidden weights over the largest of the others",
        layers=("hidden",),
    )
