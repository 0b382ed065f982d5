"""Tr ∇²L of a deep linear net f(A) = ⟨A, W_L … W_1⟩ under (f − y)², in closed form.

    Tr ∇²L = (2/n) Σ_i Σ_l ‖P_lᵀ A_i Q_lᵀ‖_F²,      P_l = W_L … W_{l+1},   Q_l = W_{l−1} … W_1

at every θ: f is linear in each factor, so ∂²f/∂W_l² = 0 and the residual has no part in the trace. For
isotropic measurements E‖Pᵀ A Qᵀ‖_F² = ‖P‖_F² ‖Q‖_F². The least trace over the factorisations of a given M of
d_L × d_0, with inner widths of at least its rank, is then

    2 L (d_0 d_L)^{1/L} ‖M‖_*^{2(L−1)/L}

(derived here; Gatmiry et al. 2023, arXiv 2306.13239, study this case): among interpolators the flattest have
the least nuclear norm.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from einops import einsum
from torch import Tensor

from flattrain.ranges import Refused
from flattrain.types import Estimate, Measure, Params, Seen, Statistic

FACTORS = "factors."


def factors_of(params: Params, what: str) -> list[Tensor]:
    """W_1, …, W_L of a `problems.matrix_sensing.DeepLinear`."""
    names = [name for name in params if name.startswith(FACTORS)]
    if len(names) < 2 or len(names) < len(params):
        raise Refused(
            f"{what} is defined for the model deep_linear; this one has {', '.join(list(params)[:3])}"
        )
    return [params[f"{FACTORS}{k}"] for k in range(len(names))]


def product(factors: list[Tensor]) -> Tensor:
    """W_L … W_1."""
    whole = factors[0]
    for factor in factors[1:]:
        whole = factor @ whole
    return whole


def _trace(seen: Seen, noise: Mapping[str, Tensor]) -> Statistic:
    factors = factors_of(seen.params, "deep_linear_trace")
    if seen.criterion.name != "squared_error":
        raise Refused(f"deep_linear_trace needs the loss squared_error, this is {seen.criterion.name}")
    total = seen.outputs.new_zeros(())
    for k in range(len(factors)):
        moved = seen.inputs
        if k + 1 < len(factors):
            moved = einsum(product(factors[k + 1 :]), moved, "r s, n r c -> n s c")
        if k:
            moved = einsum(moved, product(factors[:k]), "n s c, t c -> n s t")
        total = total + 2 * moved.square().sum() / len(moved)
    return {"trace": total}


def deep_linear_trace() -> Measure:
    """Exact Tr ∇²L, at the price of L products with the measurements."""
    return Measure(
        "hessian_trace",
        _trace,
        lambda s: Estimate(s["trace"]),
        "trace of the Hessian of the mean squared error, closed form for deep linear nets",
        order=1,
    )


def _spectrum(seen: Seen, noise: Mapping[str, Tensor]) -> Statistic:
    whole = product(factors_of(seen.params, "product_nuclear_norm"))
    return {"nuclear": torch.linalg.svdvals(whole.double()).sum().to(whole.dtype)}


def product_nuclear_norm() -> Measure:
    """‖W_L … W_1‖_*, the sum of the singular values of the matrix that the net stands for."""
    return Measure(
        "product_nuclear_norm",
        _spectrum,
        lambda s: Estimate(s["nuclear"]),
        "nuclear norm of the product of the factors of a deep linear net",
    )


def _floor(seen: Seen, noise: Mapping[str, Tensor]) -> Statistic:
    factors = factors_of(seen.params, "trace_floor")
    whole, depth = product(factors), len(factors)
    nuclear = torch.linalg.svdvals(whole.double()).sum()
    floor = 2 * depth * whole.numel() ** (1 / depth) * nuclear ** (2 * (depth - 1) / depth)
    return {"floor": floor.to(whole.dtype)}


def trace_floor() -> Measure:
    """2 L (d_0 d_L)^{1/L} ‖M‖_*^{2(L−1)/L}, M the product of the factors as they are."""
    return Measure(
        "trace_floor",
        _floor,
        lambda s: Estimate(s["floor"]),
        "least trace of the Hessian over the factorisations of the net's matrix, isotropic measurements",
    )
