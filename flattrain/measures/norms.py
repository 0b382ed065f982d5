"""Norms of the weights: ‖θ‖², and the path norm of a two-layer net."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from flattrain.types import Estimate, Measure, Seen, Statistic


def _weight_norm(seen: Seen, noise: Mapping[str, Tensor]) -> Statistic:
    return {"norm2": torch.stack([p.square().sum() for p in seen.params.values()]).sum()}


def _path_norm(seen: Seen, noise: Mapping[str, Tensor]) -> Statistic:
    hidden, head = seen.taps["hidden"], seen.taps["head"]
    rows = hidden.weight.square().sum(-1).sqrt()
    return {"path": (rows * head.weight.abs().sum(0)).sum()}


def weight_norm() -> Measure:
    """‖θ‖² = Σ θ² over all trainable parameters."""
    return Measure(
        "weight_norm",
        _weight_norm,
        lambda s: Estimate(s["norm2"]),
        "sum of squares of all trainable parameters",
    )


def path_norm() -> Measure:
    """Σ_j ‖w_j‖ |a_j| over the hidden units of a two-layer net, biases apart (Wen et al. 2023, L. 3.1)."""
    return Measure(
        "path_norm",
        _path_norm,
        lambda s: Estimate(s["path"]),
        "sum over hidden units of the norm of incoming weights times the outgoing weight, biases apart",
        layers=("hidden", "head"),
    )
