"""Per-example gradients as statistics with a row per example, for measures of a data set's Gram matrix.

Each batch scales its rows by its own mass per example; for the whole set they are rescaled to the set's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from flattrain.core.ghost import Piece
from flattrain.core.layers import Direct, Outer
from flattrain.core.losses import mass
from flattrain.types import Seen, Statistic


def pack(seen: Seen, pieces: Sequence[Piece]) -> Statistic:
    """The pieces of a batch as tensors whose rows are examples."""
    own = mass(seen.criterion, seen.target) / len(seen.outputs)
    out = {"mass": torch.full_like(seen.outputs[:, :1], own)}
    for k, piece in enumerate(pieces):
        if isinstance(piece, Direct):
            out[f"{k}.vectors"] = piece.vectors
        else:
            out[f"{k}.left"], out[f"{k}.right"] = piece.left, piece.whole()
    return out


def unpack(s: Statistic) -> tuple[int, list[Piece]]:
    """The number of examples, and the pieces of them all."""
    n = len(s["mass"])
    share = (s["mass"] / s["mass"].mean()).sqrt()
    found: list[Piece] = []
    for k in range(1 + max(int(key.split(".")[0]) for key in s if key != "mass")):
        if f"{k}.vectors" in s:
            found.append(Direct(s[f"{k}.vectors"] * share[..., None]))
        else:
            found.append(Outer(s[f"{k}.left"] * share[..., None, None, None], s[f"{k}.right"]))
    return n, found


def columns(pieces: Sequence[Piece]) -> int:
    """C, the number of pulled back vectors per example."""
    return max(
        p.vectors.shape[1] if isinstance(p, Direct) else max(p.left.shape[1], p.right.shape[1])
        for p in pieces
    )
