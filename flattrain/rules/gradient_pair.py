"""SAM's ascent, and something else made of its two gradients g = ∇L(θ) and g̃ = ∇L(θ + ρ g/‖g‖).

    gsam         g̃ − α g⊥                  g⊥ = g − ⟨g, g̃⟩ g̃/‖g̃‖²           Zhuang et al. 2022
    wsam         g + γ/(1 − γ) (g̃ − g)     of L + γ/(1 − γ) (L_SAM − L)        Yue et al. 2023
    gnp          (1 − α) g + α g̃           penalises λ ‖g‖ with λ = α ρ        Zhao et al. 2022
    stable_sam   (‖g‖/‖g̃‖) g̃               the step is as long as a plain one  Tan et al. 2025

Norms and products are over all parameters together. SAM is gsam with α = 0, gnp with α = 1 and wsam with
γ = ½; plain descent is gnp with α = 0 and wsam with γ = 0. All are homogeneous in the scale of the gradients.
"""

from __future__ import annotations

import torch

from flattrain.core import trees
from flattrain.ranges import Fraction, NonNegative, Refused, checked
from flattrain.rules.sam import steepest
from flattrain.rules.two_pass import TwoPass, stateless
from flattrain.types import Memory, Params, Rule


@checked
def surrogate_gap(*, alpha: NonNegative = 0.01) -> TwoPass:
    """GSAM: against the part of g where the ascended loss stays as it is, so that its gap to L falls."""

    def combine(g: Params, ascended: Params, memory: Memory) -> tuple[Params, Memory]:
        return trees.axpy(-alpha, trees.orthogonal(g, ascended), ascended), memory

    return TwoPass(steepest, combine)


@checked
def mixed(*, share: NonNegative = 0.8) -> TwoPass:
    """(1 − share) g + share g̃."""

    def combine(g: Params, ascended: Params, memory: Memory) -> tuple[Params, Memory]:
        return {k: torch.lerp(v, ascended[k], share) for k, v in g.items()}, memory

    return TwoPass(steepest, combine)


@checked
def weighted(*, gamma: Fraction = 0.9) -> TwoPass:
    """g + γ/(1 − γ) (g̃ − g)."""
    if gamma == 1:
        raise Refused("wsam: gamma must be below 1, where the weight γ/(1 − γ) is infinite")
    return mixed(share=gamma / (1 - gamma))


def _as_long(g: Params, ascended: Params, memory: Memory) -> tuple[Params, Memory]:
    stretch = trees.norm(g) * trees.inverse(trees.norm(ascended))
    return {k: stretch * v for k, v in ascended.items()}, memory


STABLE = TwoPass(steepest, _as_long)


@checked
def gsam(*, rho: NonNegative = 0.04, alpha: NonNegative = 0.01) -> Rule:
    """Surrogate gap minimisation, with the authors' values for ResNets; for ViT-S/32 they have ρ 0.6, α 0.4.

    Their ρ falls with the learning rate, to half of it for ResNets: `[schedule, gsam]`.
    """
    return stateless(surrogate_gap(alpha=alpha), rho)


@checked
def wsam(*, rho: NonNegative = 0.05, gamma: Fraction = 0.9) -> Rule:
    """Sharpness with a weight of its own: γ = ½ is SAM, above it weighs more. Defaults of the authors' code.

    The coupled form, whose gradient goes through the optimizer as a whole. The decoupled form, that code's
    default, differs where the optimizer is not plain SGD.
    """
    return stateless(weighted(gamma=gamma), rho)


@checked
def gnp(*, rho: NonNegative = 0.1, alpha: Fraction = 0.8) -> Rule:
    """A penalty on the gradient's norm by a finite difference of length ρ; defaults of the authors' code."""
    return stateless(mixed(share=alpha), rho)


@checked
def stable_sam(*, rho: NonNegative = 0.05) -> Rule:
    """SAM whose gradient is scaled to the length of the plain one (SSAM); ρ as in the authors' code."""
    return stateless(STABLE, rho)
