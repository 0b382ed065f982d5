"""Per-example gradients as statistics with a row per example, for measures of a data set's Gram matrix.

Each batch scales its rows by its own mass per example; for the whole set they are rescaled to the set's.
Shorter sequences have zeros for the tokens that they lack, which add nothing to a Gram matrix.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from flattrain.core.ghost import Piece
from flattrain.core.layers import Direct, Outer
from flattrain.core.weights import mass
from flattrain.types import Seen, Statistic


def pack(seen: Seen, pieces: Sequence[Piece]) -> Statistic:
    """The pieces of a batch as tensors whose rows are examples."""
    own = mass(seen.criterion, seen.target) / len(seen.outputs)
    out = {"mass": torch.full_like(seen.outputs.flatten(1)[:, :1], own)}
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


def below(above: Tensor, rows: Tensor) -> Tensor:
    """Rows put below others; where sequences differ in length, the shorter are filled with zeros."""
    if above.shape[1:] != rows.shape[1:]:
        size = [max(pair) for pair in zip(above.shape[1:], rows.shape[1:], strict=True)]
        above, rows = (_filled(t, size) for t in (above, rows))
    return torch.cat([above, rows])


def _filled(rows: Tensor, size: list[int]) -> Tensor:
    gaps = [(0, wide - own) for wide, own in zip(size, rows.shape[1:], strict=True)]
    return F.pad(rows, [side for gap in reversed(gaps) for side in gap])


def columns(pieces: Sequence[Piece]) -> int:
    """C, the number of pulled back vectors per example."""
    return max(
        p.vectors.shape[1] if isinstance(p, Direct) else max(p.left.shape[1], p.right.shape[1])
        for p in pieces
    )
