"""The factors W_L … W_1 = M at which a deep linear net is flattest under isotropic measurements.

    min 2 Σ_l ‖W_L … W_{l+1}‖_F² ‖W_{l−1} … W_1‖_F² = 2 L (d_0 d_L)^{1/L} ‖M‖_*^{2(L−1)/L}

with ‖empty product‖_F² = d_0 or d_L. It is attained by W_1 = α Σ^½ Vᵀ, W_L = β U Σ^½ and inner factors γ
times the identity on the rank of M = U Σ Vᵀ, where α, β, γ make all L terms equal (derived here, for the
setting of Gatmiry et al. 2023, arXiv 2306.13239).
"""

from __future__ import annotations

import torch
from torch import Tensor

from flattrain.ranges import Refused

NEGLIGIBLE = 1e-5  # a singular value, against the largest: what measurements in single precision leave


def flattest_factors(matrix: Tensor, depth: int, width: int) -> list[Tensor]:
    """W_1, …, W_L of M (d_L, d_0), the inner ones of `width`, which must be at least the rank of M.

    Negligible singular values are taken for 0.

    The terms are d_L ‖W_{L−1}…W_1‖², …, d_0 ‖W_L…W_2‖². With a = α², b = β², c = γ² and N = ‖M‖_* they are
    d_L a c^{L−2} N, a b c^{L−3} N² for each inner factor, and d_0 b c^{L−2} N; a b c^{L−2} = 1.
    """
    rows, columns = matrix.shape
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    rank, nuclear = int((s > NEGLIGIBLE * s[0]).sum()), float(s.sum())
    if nuclear == 0 or rank > width:
        raise Refused(f"flattest_factors: a matrix of rank {rank if nuclear else 0} and a width of {width}")
    # All terms are T with T^L = (d_0 d_L) N^{2(L−1)}, the product of the terms.
    term = (rows * columns) ** (1 / depth) * nuclear ** (2 * (depth - 1) / depth)
    b, a, c = rows * nuclear / term, columns * nuclear / term, nuclear**2 / term
    root = s[:rank].sqrt()
    first, last = matrix.new_zeros(width, columns), matrix.new_zeros(rows, width)
    first[:rank] = (a**0.5 * root[:, None] * v[:rank]).to(matrix)
    last[:, :rank] = (b**0.5 * u[:, :rank] * root).to(matrix)
    inner = matrix.new_zeros(width, width)
    inner[:rank, :rank] = c**0.5 * torch.eye(rank).to(matrix)
    return [first, *[inner] * (depth - 2), last]
