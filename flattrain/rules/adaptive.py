"""Adaptive SAM (Kwon et al. 2021): an ascent that does not see how the layers share their scale.

    ε = ρ T² g / ‖T g‖,   g̃ = ∇L(θ + ε)          T: what a unit of perturbation is worth at each weight

    elementwise   T = |θ| + η            layerwise   T = ‖θ_l‖₂ + η of the whole tensor l

T is squared in ε but not in the norm. It is the identity on biases, which are the tensors whose name ends
in "bias" (the authors' code scales the tensors whose name holds "weight", which is the same for PyTorch's
layers); `biases="scaled"` treats them as all others. With η = 0 the perturbed *function* stays the same when
one layer is multiplied by a and the next divided by it.

ρ is not portable between conventions. On one small net at ρ = 1, ‖ε‖ was 0.973 with η = 0.01 and the identity
on biases, which then dominate, and 0.037 with η = 0 and biases scaled (davda54's port, with ρ about 2).
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from flattrain.core import trees
from flattrain.ranges import NonNegative, checked
from flattrain.rules.two_pass import Direction, TwoPass, stateless
from flattrain.types import Memory, Params, Rule


@checked
def adaptive(
    *,
    eta: NonNegative = 0.01,
    scale: Literal["elementwise", "layerwise"] = "elementwise",
    biases: Literal["identity", "scaled"] = "identity",
) -> TwoPass:
    """d = T² g / ‖T g‖, over all parameters together."""

    def worth(name: str, p: Tensor) -> Tensor | None:
        if biases == "identity" and name.endswith("bias"):
            return None
        return p.abs().add_(eta) if scale == "elementwise" else p.norm() + eta

    def direction(params: Params, g: Params, size: Tensor, memory: Memory) -> tuple[Direction, Memory]:
        once, twice = {}, {}
        for k, v in g.items():
            t = worth(k, params[k])
            once[k] = v if t is None else v * t
            twice[k] = v if t is None else once[k] * t
        return Direction(twice, trees.inverse(trees.norm(once))), memory

    return TwoPass(direction)


@checked
def asam(
    *,
    rho: NonNegative = 0.5,
    eta: NonNegative = 0.01,
    scale: Literal["elementwise", "layerwise"] = "elementwise",
    biases: Literal["identity", "scaled"] = "identity",
) -> Rule:
    """Adaptive SAM; ρ = 0.5 (CIFAR-10) and η = 0.01 as in the authors' code, whose script sets η = 0."""
    return stateless(adaptive(eta=eta, scale=scale, biases=biases), rho)
