"""Soft rank of the Fisher layer by layer, and other concave penalties: the steps between whole and diagonal.

    block     Σ_l Tr φ(F_ll), the exact diagonal block of each layer, from its own Gram matrix
    ekfac     Σ_l Σ_ij φ(s_ij), the block's diagonal in its Kronecker eigenbasis (core.ekfac)
    diagonal  Σ_p φ(F_pp)

For a concave φ these are ordered, with nothing assumed about the network (pinching, Schur–Horn):

    Tr φ(F) ≤ block ≤ ekfac,   block ≤ diagonal

The Kronecker-factored rank (`soft_rank`) has no place in the order, though it is close to ekfac. The gradient
of ekfac goes through eigenvectors, which is wrong where eigenvalues coincide: use it to measure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from flattrain.core import ekfac, ghost
from flattrain.core.concave import Concave, of_gram
from flattrain.core.losses import root_vectors
from flattrain.core.ridge import ridge
from flattrain.core.rows import pack, unpack
from flattrain.ranges import Positive, checked
from flattrain.types import Estimate, Measure, Seen, Statistic

_WORDS = {
    "block": "block by block",
    "ekfac": "eigenvalue-corrected Kronecker blocks",
    "diagonal": "diagonal of the Fisher",
}


@checked
def block_rank(
    *,
    lam: Positive | Mapping[str, Positive] = 1e-2,
    approximation: Literal["block", "ekfac", "diagonal"] = "block",
    phi: Literal["soft", "logdet", "power", "trace"] = "soft",
    power: Positive = 0.5,
    layers: tuple[str, ...] | None = None,
    uncovered: Literal["refuse", "ignore", "dense"] = "refuse",
) -> Measure:
    """Σ φ over the approximated spectrum of the Fisher over `layers` (None: all).

    lam : a number, or a table {name of a parameter or a layer: number}, see `core.ridge`. The Kronecker
          eigenbasis of ekfac is then that of the scaled gradients.
    """
    tikhonov = ridge("block_rank", lam, phi)
    concave = Concave(phi, tikhonov.number, power)
    policy = uncovered if layers is None else "ignore"
    of_piece: dict[str, Callable[[ghost.Piece, int], Tensor]] = {
        "block": lambda piece, n: of_gram(concave, ghost.gram([piece]).to(torch.float64) / n),
        "ekfac": lambda piece, n: concave(ekfac.rotated(piece, n)).sum(),
        "diagonal": lambda piece, n: concave(ekfac.diagonal(piece, n)).sum(),
    }

    def pieces(seen: Seen) -> list[ghost.Piece]:
        vectors = root_vectors(seen, None, "block_rank")
        form = ghost.factored if approximation == "ekfac" else ghost.smaller_formed
        found = ghost.pieces(seen, vectors, "block_rank", policy, form, tikhonov.table)
        return [part.piece for part in found]

    def total(found: list[ghost.Piece], n: int) -> Tensor:
        return torch.stack([of_piece[approximation](piece, n).to(torch.float64) for piece in found]).sum()

    def reduce(s: Statistic) -> Estimate:
        n, found = unpack(s)
        return Estimate(total(found, n))

    def statistic(seen: Seen, noise: Mapping[str, Tensor]) -> Statistic:
        return pack(seen, pieces(seen))

    return Measure(
        "block_rank",
        statistic,
        reduce,
        f"{concave.words}{tikhonov.words}, {_WORDS[approximation]}",
        # A Kronecker basis is that of all examples together, each weighed as in the whole set.
        combine="whole" if approximation == "ekfac" else "rows",
        layers=None if layers is None else tuple(layers),
        on_batch=lambda seen, noise: total(pieces(seen), len(seen.outputs)),
        order=2,
    )
