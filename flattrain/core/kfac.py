"""Kronecker factors of the Fisher (= Gauss–Newton) blocks of layers, differentiable.

For a layer with per-example gradients Σ_s left_s right_sᵀ (core.layers; for a linear layer g φ'ᵀ, with
φ' = (φ, 1) when there is a bias) the block of the mean loss's Fisher is approximated by A ⊗ B:

    expand   A = mean_i Σ_s φ'_is φ'_isᵀ / S,        B = mean_i Σ_c Σ_s g_ics g_icsᵀ
    reduce   A = mean_i φ̄'_i φ̄'_iᵀ,  φ̄' = mean_s φ'_s,   B = mean_i Σ_c ḡ_ic ḡ_icᵀ,  ḡ = Σ_s g_s

(Martens & Grosse 2015; expand and reduce: Eschenhagen et al. 2023; they agree when S = 1). The vectors g
are the columns of L, S_i = L Lᵀ the output Hessian, pulled back: all K of them ("exact", the type-2 Fisher),
or one vector L ε per example with ε Rademacher ("sketch"), unbiased for B. L stays on the graph: labels
sampled from the model with the labels detached would be unbiased in value and 84 % off in gradient.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from flattrain.core import ghost
from flattrain.core.ghost import Uncovered
from flattrain.core.gram import gram_matrix
from flattrain.core.layers import Direct, Outer
from flattrain.core.losses import root_vectors
from flattrain.types import Seen

Sharing = Literal["expand", "reduce"]


def rows(
    seen: Seen,
    sketch: Tensor | None,
    sharing: Sharing,
    uncovered: Uncovered,
) -> dict[str, tuple[Tensor, Tensor]]:
    """{layer: (X (G, ·, D), Y (G, ·, K))} with A = XᵀX and B = YᵀY.

    A parameter of a normalisation, or one taken densely, has no second factor: Y is 1 × 1.
    """
    what = "the soft rank"
    parts = ghost.pieces(seen, root_vectors(seen, sketch, what), what, uncovered, ghost.factored)
    n = len(seen.outputs)
    out: dict[str, tuple[Tensor, Tensor]] = {}
    for layer, piece, _ in parts:
        key = layer if layer not in out else f"{layer}.bias"
        out[key] = _direct(piece, n) if isinstance(piece, Direct) else _outer(piece, n, sharing)
    return out


def factors(
    seen: Seen, sketch: Tensor | None = None, sharing: Sharing = "expand", uncovered: Uncovered = "refuse"
) -> dict[str, tuple[Tensor, Tensor]]:
    """{layer: (A (G, D, D), B (G, K, K))} for every tapped layer, G groups."""
    return {
        name: (gram_matrix(x.transpose(-1, -2)), gram_matrix(y.transpose(-1, -2)))
        for name, (x, y) in rows(seen, sketch, sharing, uncovered).items()
    }


def _outer(piece: Outer, n: int, sharing: Sharing) -> tuple[Tensor, Tensor]:
    left, right = piece.left, piece.whole()
    positions = left.shape[3]
    if sharing == "reduce":
        # The mean over s on one side and the sum on the other: 1/S² of the sums on both.
        left, right = left.sum(3, keepdim=True), right.sum(3, keepdim=True) / positions
    else:
        right = right / positions**0.5
    flat = [side.movedim(2, 0).flatten(1, 3) / n**0.5 for side in (right, left)]
    return flat[0], flat[1]


def _direct(piece: Direct, n: int) -> tuple[Tensor, Tensor]:
    flat = piece.vectors.flatten(0, 1)[None] / n**0.5
    return flat, torch.ones_like(flat[:, :1, :1])
