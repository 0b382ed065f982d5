"""The mean loss, the zero-one error of the predictions, and the generalisation gap of the loss."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from flattrain.core.labels import counted
from flattrain.ranges import Refused
from flattrain.types import Contrast, Estimate, Measure, Seen, Statistic


def _loss(seen: Seen, noise: Mapping[str, Tensor]) -> Statistic:
    return {"loss": seen.loss}


def _error(seen: Seen, noise: Mapping[str, Tensor]) -> Statistic:
    if seen.criterion.error is None:
        raise Refused(f"the loss {seen.criterion.name!r} does not say what an error is")
    outputs, target = counted(seen)
    share = len(outputs) / len(seen.outputs)
    wrong = seen.criterion.error(outputs, target) * share if share else seen.outputs.new_zeros(())
    return {"wrong": wrong, "counted": torch.full_like(wrong, share)}


def loss() -> Measure:
    """L = (1/n) Σ ℓ(f(x_i), y_i)."""
    return Measure("loss", _loss, lambda s: Estimate(s["loss"]), "mean loss over the examples")


def error() -> Measure:
    """Share of wrong predictions: argmax ≠ label, or y f(x) ≤ 0 for ±1 targets; of tokens, all that count."""
    return Measure(
        "error",
        _error,
        lambda s: Estimate(s["wrong"] / s["counted"]),
        "share of wrong predictions; an output of exactly 0 is wrong",
        combine="examples",
    )


def loss_gap() -> Contrast:
    """L on held-out examples less L on the training examples."""
    return Contrast(
        "loss_gap", loss(), loss(), "mean loss on held-out examples less that on training examples"
    )
