"""The matrix of least nuclear norm that meets linear measurements, with a certificate.

    min ‖M‖_*   such that ⟨A_i, M⟩ = b_i                  dual: max ⟨λ, b⟩ such that ‖Σ_i λ_i A_i‖₂ ≤ 1

Douglas–Rachford splitting between the nuclear norm, whose proximal map shrinks the singular values, and the
projection onto the measurements (Lions & Mercier 1979; Cai, Candès & Shen 2010 for the shrinking). Every
matrix that meets the measurements bounds the least norm from above and every λ of the dual from below: the
iteration stops when the two bounds agree, so that its answer does not rest on the iteration.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from flattrain.ranges import Refused

CHECK_EVERY = 20


class Least(NamedTuple):
    """M (rows, columns) meets the measurements; below ≤ least nuclear norm ≤ ‖M‖_* = above."""

    matrix: Tensor
    below: float
    above: float


def least_nuclear_norm(
    measurements: Tensor, values: Tensor, *, tolerance: float = 1e-6, iterations: int = 100_000
) -> Least:
    """For measurements (n, rows, columns) and values (n,), to a relative gap of `tolerance`.

    Values in single precision belong to no matrix of low rank exactly; far below 1e-6 the way is long.

    Raises `Refused` where no matrix meets the measurements, or where so many iterations leave a wider gap.
    """
    shape = measurements.shape[1:]
    rows, b = measurements.double().flatten(1), values.double()
    # Of the measurements' span: V has orthonormal columns and M = V c + (what they do not see).
    _, s, v = torch.linalg.svd(rows, full_matrices=False)
    v = v[s > 1e-10 * s[0]].mT
    shortest = v @ torch.linalg.lstsq(rows @ v, b[:, None]).solution[:, 0]
    if torch.linalg.vector_norm(rows @ shortest - b) > 1e-6 * torch.linalg.vector_norm(b):
        raise Refused("least_nuclear_norm: no matrix meets these measurements")
    radius = float(torch.linalg.matrix_norm(shortest.view(shape), 2))
    if radius == 0:
        return Least(shortest.view(shape), 0.0, 0.0)

    def meeting(m: Tensor) -> Tensor:
        return m - v @ (v.mT @ m) + shortest

    state = shortest
    for k in range(iterations):
        u, s, w = torch.linalg.svd(state.view(shape), full_matrices=False)
        shrunk = ((u * (s - radius).clamp(min=0)) @ w).flatten()
        if k % CHECK_EVERY == 0:
            met = meeting(shrunk)
            dual = v @ (v.mT @ (state - shrunk))
            size = float(torch.linalg.matrix_norm(dual.view(shape), 2))
            below = float(dual @ shortest) / size if size else 0.0
            above = float(torch.linalg.matrix_norm(met.view(shape), "nuc"))
            if above - below <= tolerance * above:
                return Least(met.view(shape), below, above)
        state = state + meeting(2 * shrunk - state) - shrunk
    raise Refused(
        f"least_nuclear_norm: after {iterations:,} iterations the norm is between {below:.10g} "
        f"and {above:.10g}"
    )
