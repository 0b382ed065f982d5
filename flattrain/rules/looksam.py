"""LookSAM (Liu et al. 2022): the ascent is taken at every k-th step and reused in between.

    at step 0, k, 2k, …   g_s = ∇L(θ + ρ g/‖g‖)  is the gradient;  keep g_v = g_s − ⟨g_s, g⟩ g/‖g‖²
    in between            g + α (‖g‖/‖g_v‖) g_v

g_v is what SAM adds across g, and is thought to change slowly. The projection is over all parameters
together, not tensor by tensor, and the parameters are not touched (our form, from the paper's formula).

Only the direction of g_v is used, so that is what is kept, at the cost of one copy of the parameters. Where
g_s is parallel to g up to rounding there is no such direction, and 0 is kept, not amplified rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flattrain.core import trees
from flattrain.ranges import Count, NonNegative, checked
from flattrain.rules.sam import steepest
from flattrain.rules.two_pass import TwoPass, as_rule
from flattrain.types import Memory, Params, StatefulRule

ROUNDING = 16  # times the machine's epsilon: an orthogonal part below it, relative to g_s, is none


@checked
def reused(*, alpha: NonNegative = 0.7, every: Count = 10) -> TwoPass:
    """SAM at every `every`-th step; in between, the plain gradient and α times what SAM added last."""

    def combine(g: Params, ascended: Params, memory: Memory) -> tuple[Params, Memory]:
        across = trees.orthogonal(ascended, g)
        size, whole = trees.norm(across), trees.norm(ascended)
        shrink = trees.inverse(torch.where(size > ROUNDING * torch.finfo(size.dtype).eps * whole, size, 0.0))
        return ascended, memory | {_kept(k): shrink * v for k, v in across.items()}

    def between(g: Params, size: Tensor, memory: Memory) -> Params:
        return trees.axpy(alpha * size, {k: memory[_kept(k)] for k in g}, g)

    def init(params: Params) -> Memory:
        return {_kept(k): torch.zeros_like(v) for k, v in params.items()}

    return TwoPass(steepest, combine, every, between, init)


def _kept(name: str) -> str:
    return f"across.{name}"


@checked
def looksam(*, rho: NonNegative = 0.1, alpha: NonNegative = 0.7, every: Count = 10) -> StatefulRule:
    """SAM at 1 + 1/k gradients per step, with the defaults of kozistr/pytorch_optimizer; k = 1 is SAM."""
    return as_rule(reused(alpha=alpha, every=every), rho)
