"""The risk E ℓ(f(x), y) under the distribution that the examples come from, estimated by their mean loss.

    mean ℓ_i   with standard error   std ℓ_i / √n;   Σ w_i ℓ_i / Σ w_i where the loss weighs its examples

Examples are sequences where the loss is of tokens: tokens of one sequence are no independent sample.

The same number as `measures.loss`, which is exact for its examples and says nothing of others. An estimate of
the risk only on examples that the network has not been fitted to, nor chosen by.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from flattrain.core.weights import example_weights
from flattrain.types import Estimate, Measure, Seen, Statistic


def _of_examples(seen: Seen, noise: Mapping[str, Tensor]) -> Statistic:
    mean, z, y = seen.criterion.mean, seen.outputs, seen.target
    losses = torch.stack([mean(z[i : i + 1], y[i : i + 1]) for i in range(len(z))])
    weights = example_weights(seen.criterion, z, y).to(losses)
    return {"loss": losses.where(weights > 0, 0.0), "weight": weights}


def _reduce(s: Statistic) -> Estimate:
    w = s["weight"] / s["weight"].sum()
    value = (w * s["loss"]).sum()
    n = (w > 0).sum()
    spread = (w * (s["loss"] - value)).square().sum()
    # n/(n − 1): the mean was fitted to the same examples. One example alone has no spread.
    return Estimate(value, (spread * (n / (n - 1))).sqrt())


def risk() -> Measure:
    """E ℓ by the examples it is measured on, with the standard error of a sample."""
    return Measure("risk", _of_examples, _reduce, "mean loss with the standard error of a sample", "rows")
