"""Friendly SAM (Li, T. et al. 2024): the ascent follows the noise of a batch, not the full gradient.

    d = g − σ m,   ε = ρ d/‖d‖,   then m ← λ m + (1 − λ) g

m, a running mean of the batches' gradients, stands for the full gradient. As in the authors' code, d is taken
with the m of the steps before, and m starts as the first g: the first ascent is SAM's. There σ = 1, and
λ = 0.9 is the default of the class (0.6 and 0.95 in its scripts). σ = 0 is SAM.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flattrain.core import trees
from flattrain.ranges import Fraction, NonNegative, checked
from flattrain.rules.two_pass import Direction, TwoPass, as_rule
from flattrain.types import Memory, Params, StatefulRule

SEEN = "any gradient seen"  # 0 or 1: the first gradient has nothing to be averaged with


@checked
def friendly(*, sigma: NonNegative = 1.0, lam: Fraction = 0.9) -> TwoPass:
    """d = (g − σ m)/‖g − σ m‖, with the mean m of the gradients before."""

    def direction(params: Params, g: Params, size: Tensor, memory: Memory) -> tuple[Direction, Memory]:
        mean = {k: memory[_mean(k)] for k in g}
        old = lam * memory[SEEN]
        after = {_mean(k): torch.lerp(mean[k], v, 1 - old) for k, v in g.items()}
        d = trees.axpy(-sigma, mean, g)
        after[SEEN] = torch.ones_like(memory[SEEN])
        return Direction(d, trees.inverse(trees.norm(d))), memory | after

    def init(params: Params) -> Memory:
        some = next(iter(params.values()))
        means = {_mean(k): torch.zeros_like(v) for k, v in params.items()}
        return means | {SEEN: torch.zeros((), dtype=some.dtype, device=some.device)}

    return TwoPass(direction, init=init)


def _mean(name: str) -> str:
    return f"mean.{name}"


@checked
def friendly_sam(*, rho: NonNegative = 0.2, sigma: NonNegative = 1.0, lam: Fraction = 0.9) -> StatefulRule:
    """SAM along the batch's own part of the gradient; ρ = 0.2 as in the authors' CIFAR-100 script."""
    return as_rule(friendly(sigma=sigma, lam=lam), rho)
