"""The eigenvalue-corrected Kronecker factorisation (George et al. 2018), and the diagonal.

In the eigenbases U of A and V of B (core.kfac) the diagonal of the layer's exact Fisher block,

    s_ij = mean_k Σ_c ⟨u_i v_jᵀ, G_kc⟩²,     G_kc = Σ_s left_s right_sᵀ the per-example gradients,

replaces the products a_i b_j. Its trace is that of the block, and Σ φ(s) is at least Tr φ of the block for a
concave φ (Schur–Horn); the same holds in any other orthonormal basis, the diagonal of the block's own
coordinates among them.
"""

from __future__ import annotations

import torch
from einops import einsum
from torch import Tensor

from flattrain.core.concave import eigenvalues
from flattrain.core.gram import gram_matrix
from flattrain.core.layers import Direct, Outer


def rotated(piece: Outer | Direct, n: int) -> Tensor:
    """s in the Kronecker eigenbasis of the block; the exact eigenvalues of a block that has no factors."""
    if isinstance(piece, Direct):
        return eigenvalues(gram_matrix(piece.vectors.flatten(0, 1).T.double()) / n)
    sides = [side.to(torch.float64) for side in (piece.left, piece.whole())]
    bases = [_basis(side) for side in sides]
    moved = [
        einsum(side, basis, "n c g s k, g k i -> n c g s i") for side, basis in zip(sides, bases, strict=True)
    ]
    return _second_moment(moved[0], moved[1], n)


def diagonal(piece: Outer | Direct, n: int) -> Tensor:
    """The diagonal of the block in its own coordinates."""
    if isinstance(piece, Direct):
        return piece.vectors.square().sum((0, 1)) / n
    return _second_moment(piece.left, piece.whole(), n)


def _basis(side: Tensor) -> Tensor:
    rows = side.movedim(2, 0).flatten(1, 3)
    vectors: Tensor = torch.linalg.eigh(rows.transpose(-1, -2) @ rows)[1]
    return vectors


def _second_moment(left: Tensor, right: Tensor, n: int) -> Tensor:
    if left.shape[3] == 1:  # one position: the square of an outer product is that of the squares
        squares = [side[:, :, :, 0].square() for side in (left, right)]
        shape = torch.broadcast_shapes(squares[0].shape[:3], squares[1].shape[:3])
        squares = [s.expand(*shape, -1) for s in squares]
        return einsum(squares[0], squares[1], "n c g k, n c g d -> g k d") / n
    formed = einsum(left, right, "n c g s k, n c g s d -> n c g k d")
    return formed.square().sum((0, 1)) / n
