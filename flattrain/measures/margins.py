"""Output margins γ_i = z_y − max_{k≠y} z_k, positive where the prediction is right.

With one output and ±1 targets, γ_i = y_i f(x_i). Plain, or divided by Π_l ‖W_l‖₂, the product of the
spectral norms of all linear layers: that quotient ignores the scale of the weights of a bias-free ReLU
net. It is the leading factor of spectrally-normalised margins (Bartlett, Foster & Telgarsky 2017),
without their (2,1)-norm correction. Where the loss is of tokens, i runs over all that it counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from flattrain.core.functional import linear_taps
from flattrain.core.labels import mean_counted, over_counted, rows_and_classes
from flattrain.ranges import Fraction, checked
from flattrain.types import Estimate, Measure, Seen, Statistic

_WORDS = {"none": "", "spectral": " divided by the product of the spectral norms of the linear layers"}


def _margins(seen: Seen, normalisation: str) -> Tensor:
    z, labels = rows_and_classes(seen, "margin")
    if z.shape[1] == 1:
        margin = z[:, 0] * (2 * labels - 1)
    else:
        own = labels[:, None] == torch.arange(z.shape[1], device=z.device)
        zero, lowest = torch.zeros_like(z), torch.full_like(z, -torch.inf)
        margin = torch.where(own, z, zero).sum(-1) - torch.where(own, lowest, z).amax(-1)
    for tap in linear_taps(seen, "margin").values() if normalisation == "spectral" else ():
        margin = margin / torch.linalg.matrix_norm(tap.weight, 2)
    return margin


@checked
def mean_margin(*, normalisation: Literal["none", "spectral"] = "none") -> Measure:
    """(1/n) Σ γ_i."""

    def statistic(seen: Seen, noise: Mapping[str, Tensor]) -> Statistic:
        return over_counted(_margins(seen, normalisation), seen)

    return Measure(
        "mean_margin",
        statistic,
        mean_counted,
        f"mean over examples of the output margin z_y − max of the others{_WORDS[normalisation]}",
        combine="examples",
        layers=None if normalisation == "spectral" else (),
    )


@checked
def margin_quantile(
    *, quantile: Fraction = 0.5, normalisation: Literal["none", "spectral"] = "none"
) -> Measure:
    """The `quantile` of γ over the examples, 0.5 the median, 0 the smallest; linear between neighbours."""

    def statistic(seen: Seen, noise: Mapping[str, Tensor]) -> Statistic:
        return {"margins": _margins(seen, normalisation)}

    def reduce(s: Statistic) -> Estimate:
        # Not torch.quantile, which stops at 16 million numbers.
        ordered = s["margins"].sort().values
        place = quantile * (len(ordered) - 1)
        below = int(place)
        above = min(below + 1, len(ordered) - 1)
        return Estimate(ordered[below] + (place - below) * (ordered[above] - ordered[below]))

    return Measure(
        "margin_quantile",
        statistic,
        reduce,
        f"quantile {quantile:g} over examples of the output margin z_y − max of the others"
        f"{_WORDS[normalisation]}",
        combine="rows",
        layers=None if normalisation == "spectral" else (),
    )
