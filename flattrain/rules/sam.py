"""Sharpness-aware minimisation (Foret et al. 2021), its unnormalised and its m-sharpness form.

    sam     g = ∇L(θ + ρ ∇L(θ)/‖∇L(θ)‖)                         one ascent for the whole batch
    usam    g = ∇L(θ + ρ ∇L(θ))                                 Andriushchenko & Flammarion 2022
    m_sam   g = mean over groups of m examples of sam's g        m = 1: one ascent per example

The norm is over all parameters together. Where the gradient is exactly zero there is no direction to
ascend and g = ∇L(θ); elsewhere no constant is added to the norm.

`per_example` is the gradient of m = 1 by two passes over the batch, ρ -> grad_fn; a recipe gives the
objective's (`core.ghost_sam`) where its net and penalties allow. Otherwise the groups run side by side.
"""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.func import vmap

from flattrain.core import trees
from flattrain.ranges import Count, NonNegative, Refused, checked
from flattrain.rules.two_pass import Direction, TwoPass, stateless
from flattrain.types import Batch, GradFn, Logs, Memory, OfRadius, Params, Rule


def steepest(params: Params, g: Params, size: Tensor, memory: Memory) -> tuple[Direction, Memory]:
    """d = g / ‖g‖."""
    return Direction(g, trees.inverse(size)), memory


def raw(params: Params, g: Params, size: Tensor, memory: Memory) -> tuple[Direction, Memory]:
    """d = g."""
    return Direction(g, torch.ones_like(size)), memory


SAM = TwoPass(steepest)
USAM = TwoPass(raw)


@checked
def sam(*, rho: NonNegative = 0.05) -> Rule:
    """SAM with radius ρ; ρ = 0 is the plain gradient."""
    return stateless(SAM, rho)


@checked
def usam(*, rho: NonNegative = 0.05) -> Rule:
    """SAM without normalisation: the ascent is a gradient step of size ρ."""
    return stateless(USAM, rho)


@checked
def m_sam(*, rho: NonNegative = 0.05, m: Count = 1, per_example: OfRadius | None = None) -> Rule:
    """SAM with one ascent per group of m consecutive examples; m = 1 is per-example SAM."""
    exact = per_example if m == 1 else None
    if exact is not None:
        return _in_two_passes(rho, exact)

    def wrap(grad_fn: GradFn) -> GradFn:
        one = stateless(SAM, rho)(grad_fn)

        def gradient(params: Params, batch: Batch) -> tuple[Params, Logs]:
            if len(batch.y) % m:
                raise Refused(f"m_sam: the batch of {len(batch.y)} is not a multiple of m = {m}")
            over_groups: Any = Batch(0, 0, None, None, None)  # type: ignore[arg-type]  # axes in place of tensors
            groups = batch._replace(x=_grouped(batch.x, m), y=_grouped(batch.y, m))
            grads, logs = vmap(one, in_dims=(None, over_groups))(params, groups)
            return {k: v.mean(0) for k, v in grads.items()}, {k: v.mean(0) for k, v in logs.items()}

        return gradient

    return Rule(wrap)


def _in_two_passes(rho: float, per_example: OfRadius) -> Rule:
    def wrap(grad_fn: GradFn) -> GradFn:
        def gradient(params: Params, batch: Batch) -> tuple[Params, Logs]:
            radius = rho * batch.moment.strength
            return (per_example(radius) if radius else grad_fn)(params, batch)

        return gradient

    return Rule(wrap)


def _grouped(t: Tensor, m: int) -> Tensor:
    return rearrange(t, "(groups m) ... -> groups m ...", m=m)
