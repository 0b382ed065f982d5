"""Hutchinson's estimate of a trace, with its standard error.

Tr A = E zᵀ A z,  z with independent ±1 entries;   Var = 2 Σ_{i≠j} A_ij²   per probe.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flattrain.types import Estimate


def mean_of_probes(values: Tensor) -> Estimate:
    """Mean and standard error over the last dimension (probes); one probe has no standard error (nan)."""
    count = values.shape[-1]
    if count == 1:
        return Estimate(values.mean(-1), torch.full_like(values[..., 0], float("nan")))
    return Estimate(values.mean(-1), values.std(-1) / count**0.5)
