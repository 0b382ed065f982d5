"""The universal class of sharpness measures (Tahmasebi et al. 2024, arXiv 2406.03682), as rules.

    q_k = (L(θ + ρ v_k) − L(θ)) / ρ²,  v_k ~ μ,        R = φ(mean_k ψ(q_k)),        objective L + λ ρ² R

    universal  g + λ φ'(mean ψ(q)) · mean_k ψ'(q_k) (∇L(θ + ρ v_k) − g)
    trace_sam  φ = ψ = id                                       ρ² R → (ρ²/2) Tr H for Gaussian v
    det_sam    ψ(q) = e^(−q/2), φ(x) = x⁻², v uniform in a cube; the constant (2π)^d is dropped
    frob_sam   g + (λ/ρ²) Cov_k(L(θ + ρ v_k), ∇L(θ + ρ v_k)),   the unbiased sample covariance

Defaults and these forms are those of the authors' code (dbahri/universal_sam, solver/sam.py). frob_sam's mean
is the gradient of L + (λ/2ρ²) Var L(θ + ρv), and Var/ρ² = ‖g‖² + (ρ²/2) ‖H‖_F² + … (our derivation): away
from minima it is a penalty of the gradient norm first.

A step costs `samples` + 1 gradients. L is the logged loss: penalties and decay that stand inside these rules
are in the gradients but not in the q_k, so they belong outside. The schedule's share scales λ.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.func import grad, vmap

from flattrain.core import trees
from flattrain.core.probes import direction, over_parameters
from flattrain.ranges import Count, NonNegative, Positive, Refused, checked
from flattrain.types import Batch, Draw, GradFn, Logs, Params, Rule

Scalar: TypeAlias = "Callable[[Tensor], Tensor]"
Cloud: TypeAlias = "Callable[[Params], Params]"


def gaussian(z: Params) -> Params:
    """μ = N(0, I), from standard normals z; of norm √D."""
    return z


def sphere(z: Params) -> Params:
    """μ uniform on the unit sphere over all parameters together."""
    size = trees.inverse(trees.norm(z))
    return {k: size * v for k, v in z.items()}


def cube(half: float) -> Cloud:
    """μ uniform in [−half, half]^D: half · (2Φ(z) − 1)."""
    return lambda z: {k: half * torch.erf(v / math.sqrt(2)) for k, v in z.items()}


@checked
def universal(
    *, phi: Scalar, psi: Scalar, mu: Cloud, rho: Positive, lam: NonNegative = 1.0, samples: Count = 1
) -> Rule:
    """Any φ, ψ (functions of a scalar tensor) and μ; their derivatives are taken by autograd."""

    def weigh(q: Tensor) -> Tensor:
        return grad(phi)(vmap(psi)(q).mean()) * vmap(grad(psi))(q) / len(q)

    return _weighted(weigh, mu, rho, lam, samples)


@checked
def trace_sam(
    *,
    rho: Positive = 0.01,
    lam: NonNegative = 1.0,
    samples: Count = 1,
    mu: Literal["gaussian", "sphere"] = "gaussian",
) -> Rule:
    """The mean loss around θ; λ = 1 with Gaussian v and one sample is weight noise.

    The authors' code computes the scale that would put v on the sphere and does not apply it, so its ρ goes
    with Gaussian v: the default here. On the sphere the same ρ is weaker by the number of parameters.
    """
    return _weighted(
        lambda q: torch.ones_like(q) / len(q), {"sphere": sphere}.get(mu, gaussian), rho, lam, samples
    )


@checked
def det_sam(
    *, rho: Positive = 1.0, lam: NonNegative = 1.0, samples: Count = 1, half: Positive = 0.01
) -> Rule:
    """A monotone function of det H, estimated in a cube of half-side `half`."""

    def weigh(q: Tensor) -> Tensor:
        # φ'(m) ψ'(q_k)/n = e^(−q_k/2) / (n m³), m = mean e^(−q/2): through logarithms, so that m may be tiny
        mean = torch.logsumexp(-q / 2, 0) - math.log(len(q))
        return torch.softmax(-q / 2, 0) * torch.exp(-2 * mean)

    return _weighted(weigh, cube(half), rho, lam, samples)


@checked
def frob_sam(*, rho: Positive = 0.005, lam: NonNegative = 0.005, samples: Count = 2) -> Rule:
    """The variance of the loss around θ, Gaussian v; needs two samples at least."""
    if samples < 2:
        raise Refused(f"frob_sam: a covariance needs samples >= 2, got {samples}")
    return _weighted(lambda q: (q - q.mean()) / (len(q) - 1), gaussian, rho, lam, samples)


def _weighted(weigh: Scalar, mu: Cloud, rho: float, lam: float, samples: int) -> Rule:
    """g + λ Σ_k w_k (∇L(θ + ρ v_k) − g), w = weigh(q)."""

    def wrap(grad_fn: GradFn) -> GradFn:
        def gradient(params: Params, batch: Batch) -> tuple[Params, Logs]:
            g, logs = grad_fn(params, batch)
            strength = lam * batch.moment.strength
            if strength == 0:
                return g, logs
            losses, slopes = [], []
            for k in range(samples):
                z = {n: v.to(params[n].dtype) for n, v in direction(batch.noise, k, params).items()}
                slope, there = grad_fn(trees.axpy(rho, mu(z), params), batch)
                losses.append(there["loss"])
                slopes.append(trees.axpy(-1, g, slope))
            around = torch.stack(losses)
            weights = strength * weigh((around - logs["loss"]) / rho**2)
            return trees.axpy(1, trees.mix(weights, slopes), g), logs | {"around/loss": around.mean()}

        return gradient

    def draws(params: Params, batch: Batch) -> dict[str, Draw]:
        return over_parameters(params, "normal", samples)

    return Rule(wrap, draws)
