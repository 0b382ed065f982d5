"""The logistic model on the cube {±1}ᵈ: every expectation is a sum over its 2ᵈ points.

x uniform on the cube, P(y = 1 | x) = σ(θ*ᵀx), θ*_j = (2(d − j) + 1)/d for j = 1 … d: they fall evenly from
2 − 1/d to 1/d. With ℓ = log(1 + e^z) − y z, z = θᵀx, and p = σ(z), p* = σ(θ*ᵀx),

    R(θ) = E[log(1 + e^z) − p* z]                            risk
    g(θ) = E[(p − p*) x],    H(θ) = E[p (1 − p) x xᵀ]        its derivatives; H is also the Fisher matrix
    C(θ) = E[(p* (1 − p)² + (1 − p*) p²) x xᵀ] − g gᵀ        covariance of ∇ℓ

θ_λ minimises R(θ) + (λ/2)‖θ‖²: at λ = 0 it is θ*, and the model is well specified. All in float64.
"""

from __future__ import annotations

import itertools
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from flattrain.ranges import Refused

LARGEST = 14  # of the dimension: 16,384 points


class Minimum(NamedTuple):
    """θ_λ (d,), and the gradient (d,), Hessian (d, d) and covariance (d, d) of the loss there."""

    theta: Tensor
    gradient: Tensor
    hessian: Tensor
    covariance: Tensor


@lru_cache(maxsize=8)
def points(dim: int) -> Tensor:
    """The corners of the cube (2ᵈ, d)."""
    if not 1 <= dim <= LARGEST:
        raise Refused(f"logistic cube: dim must be from 1 to {LARGEST}, got {dim}")
    return torch.tensor(list(itertools.product((1.0, -1.0), repeat=dim)), dtype=torch.float64)


def truth(dim: int) -> Tensor:
    """θ* (d,)."""
    return (2 * torch.arange(dim - 1, -1, -1, dtype=torch.float64) + 1) / dim


def risk(theta: Tensor) -> Tensor:
    """R(θ), for θ (d,)."""
    x = points(len(theta))
    z = x @ theta
    return (F.softplus(z) - (x @ truth(len(theta))).sigmoid() * z).mean()


def moments(theta: Tensor) -> Minimum:
    """The derivatives and the covariance at any θ (d,)."""
    x = points(len(theta))
    p, own = (x @ theta).sigmoid(), (x @ truth(len(theta))).sigmoid()

    def weighed(w: Tensor) -> Tensor:
        return (x * w[:, None]).T @ x / len(x)

    g = x.T @ (p - own) / len(x)
    square = weighed(own * (1 - p) ** 2 + (1 - own) * p**2)
    return Minimum(theta, g, weighed(p * (1 - p)), square - torch.outer(g, g))


@lru_cache(maxsize=64)
def minimum(dim: int, lam: float) -> Minimum:
    """θ_λ by Newton's method from 0, and what is known there."""
    eye, theta = torch.eye(dim, dtype=torch.float64), torch.zeros(dim, dtype=torch.float64)
    for _ in range(100):
        at = moments(theta)
        step = torch.linalg.solve(at.hessian + lam * eye, at.gradient + lam * theta)
        theta = theta - step
        if float(step.abs().max()) < 1e-14:
            break
    return moments(theta)
