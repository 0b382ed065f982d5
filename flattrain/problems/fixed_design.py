"""A linear model with Gaussian noise on one fixed design: the in-sample gap of ridge regression is known.

    y = Xθ* + σε,    X (n × d) and θ* standard normal and the same for every seed, ε new in each

With the loss ½ mean_i Σ_k (f_ik − y_ik)² and weight decay λ, F = XᵀX/n for each of the K targets, and for
every n the mean over ε of the risk at new targets on the same X less the training loss is

    E[gap] = K σ² rank_λ(F)/n = σ² rank_λ(F_K)/n,     F_K the Fisher matrix of all K targets

The K targets are independent draws of ε, so one seed stands for K repeats. The test set is X twice, with the
targets Xθ* + σ and Xθ* − σ: its loss is the risk exactly, whatever f is.
"""

from __future__ import annotations

import torch

from flattrain.core.probes import stream
from flattrain.problems.split import DataSet, Split
from flattrain.ranges import Count, Positive, checked


@checked
def fixed_design(
    *, dim: Count = 15, train: Count = 40, noise: Positive = 1.0, targets: Count = 20
) -> DataSet:
    """`train` rows of X, `targets` columns of noise with standard deviation `noise`."""
    generator = stream("fixed_design", dim, train)
    x = torch.randn(train, dim, generator=generator, dtype=torch.float64)
    mean = x @ torch.randn(dim, 1, generator=generator, dtype=torch.float64)

    def split(seed: int) -> Split:
        own = stream(seed, "fixed_design", "noise")
        y = mean + noise * torch.randn(train, targets, generator=own, dtype=torch.float64)
        both = torch.cat([mean + noise, mean - noise]).expand(-1, targets).contiguous()
        return Split(x, y, torch.cat([x, x]), both, targets)

    return split
