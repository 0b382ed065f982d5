"""Calibration of a softmax classifier: expected calibration error, and the temperature that fits best.

    ECE = Σ_b |acc(b) − conf(b)| n_b / n,    bins ((b−1)/M, b/M] of the confidence max_k p_k, b = 1 … M
    T*  = argmin_{T>0} NLL(T),   NLL(T) = (1/n) Σ_i ℓ(z_i / T, y_i)        (both: Guo et al. 2017)

ECE is estimated by binning, so it depends on M, and is biased upwards for few examples per bin. NLL is
convex in β = 1/T:

    dNLL/dβ = mean( E_p[z] − z_y ),    d²NLL/dβ² = mean Var_p[z] >= 0,     p = softmax(βz)

so Newton's method inside a bracket finds T*. T* > 1 says over-confident, T* < 1 under-confident. Where
every prediction is right the loss falls until T = 0; where the logits do no better than a constant, until
T = ∞. Those limits are reported as such. Where the loss is of tokens, i runs over all that it counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from flattrain.core.labels import logits_and_classes
from flattrain.ranges import Count, checked
from flattrain.types import Estimate, Measure, Seen, Statistic


@checked
def calibration_error(*, bins: Count = 15) -> Measure:
    """ECE with `bins` equal-width bins."""

    def statistic(seen: Seen, noise: Mapping[str, Tensor]) -> Statistic:
        z, labels = logits_and_classes(seen, "calibration_error")
        confidence, predicted = z.softmax(-1).max(-1)
        place = (confidence * bins).ceil().long() - 1
        inside = (place[:, None] == torch.arange(bins, device=z.device)).to(z.dtype)
        surplus = (predicted == labels).to(z.dtype) - confidence
        # The sum of acc(b) − conf(b) over a bin, and how many count: by examples, so that batches combine.
        n = len(seen.outputs)
        return {"surplus": surplus @ inside / n, "counted": torch.full_like(z[:1, 0].sum(), len(z) / n)}

    return Measure(
        "calibration_error",
        statistic,
        lambda s: Estimate(s["surplus"].abs().sum() / s["counted"]),
        f"expected calibration error of the confidence, {bins} equal-width bins",
        combine="examples",
    )


def _rows(seen: Seen, noise: Mapping[str, Tensor]) -> Statistic:
    z, labels = logits_and_classes(seen, "temperature")
    return {"logits": z, "labels": labels}


def fit(logits: Tensor, labels: Tensor) -> float:
    """β = 1/T of the smallest NLL, from 0 to ∞."""
    z = logits.detach().to(torch.float64)
    own = z.gather(1, labels[:, None]).squeeze(1)

    def slopes(beta: float) -> tuple[float, float]:
        p = (beta * z).softmax(-1)
        mean = (p * z).sum(-1)
        spread = (p * (z - mean[:, None]).square()).sum(-1)
        return float((mean - own).mean()), float(spread.mean())

    if slopes(0.0)[0] >= 0:
        return 0.0
    if bool((own == z.amax(-1)).all()):
        return math.inf
    low, high = 0.0, 1.0
    while slopes(high)[0] < 0:
        low, high = high, 2 * high
    beta = high
    for _ in range(200):
        first, second = slopes(beta)
        low, high = (beta, high) if first < 0 else (low, beta)
        step = beta - first / second if second > 0 else low
        new = step if low < step < high else (low + high) / 2
        if abs(new - beta) <= 1e-14 * beta:
            return new
        beta = new
    return beta


def _temperature(s: Statistic) -> Estimate:
    beta = fit(s["logits"], s["labels"])
    return Estimate(1 / beta if beta else math.inf)


def _tempered_loss(s: Statistic) -> Estimate:
    z, beta = s["logits"].to(torch.float64), fit(s["logits"], s["labels"])
    if beta == math.inf:  # all mass on the largest logits
        ties = (z == z.amax(-1, keepdim=True)).sum(-1)
        return Estimate(ties.to(z.dtype).log().mean())
    return Estimate(torch.nn.functional.cross_entropy(beta * z, s["labels"]))


def temperature() -> Measure:
    """T* that minimises the mean NLL of logits / T on the examples it is evaluated on."""
    return Measure(
        "temperature",
        _rows,
        _temperature,
        "temperature T that minimises the mean negative log-likelihood of logits / T on these same examples",
        combine="rows",
    )


def tempered_loss() -> Measure:
    """NLL(T*): the loss that no common scale of the logits can improve, fitted on the examples themselves."""
    return Measure(
        "tempered_loss",
        _rows,
        _tempered_loss,
        "mean negative log-likelihood of logits / T at the temperature T that minimises it on these same "
        "examples",
        combine="rows",
    )
