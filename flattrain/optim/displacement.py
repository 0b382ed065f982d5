"""Weights moved in place and put back bit for bit, and the length of a gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from flattrain.rules.two_pass import Direction
from flattrain.types import Params


class Displacement:
    """θ + ρ d in the place of θ, until `undo`.

    Weights are copied, not subtracted again, which would leave them a rounding error away. The copies are
    kept from step to step: allocating them anew costs a sixth of a small net's step.
    """

    def __init__(self) -> None:
        self._copies: Params = {}
        self._moved: Params = {}

    @torch.no_grad()
    def move(self, params: Params, direction: Direction, radius: Mapping[str, float]) -> None:
        """p ← p + radius · scale · along; `along` may be sparse."""
        scale = float(direction.scale)
        copies = [self._copy(key, params[key]) for key in direction.along]
        self._moved = {key: params[key] for key in direction.along}
        torch._foreach_copy_(copies, list(self._moved.values()))
        for rho in {radius[key] for key in self._moved}:
            moves = [(p, direction.along[key]) for key, p in self._moved.items() if radius[key] == rho]
            dense = [pair for pair in moves if not pair[1].is_sparse]
            if dense:
                torch._foreach_add_(*map(list, zip(*dense, strict=True)), alpha=scale * rho)
            for p, along in moves:
                if along.is_sparse:
                    p.add_(along, alpha=scale * rho)

    def _copy(self, key: str, p: Tensor) -> Tensor:
        copy = self._copies.get(key)
        if copy is None or copy.shape != p.shape or copy.dtype != p.dtype or copy.device != p.device:
            copy = self._copies[key] = torch.empty_like(p)
        return copy

    @torch.no_grad()
    def undo(self) -> None:
        """Every weight that was moved, as it was."""
        if self._moved:
            torch._foreach_copy_(list(self._moved.values()), [self._copies[key] for key in self._moved])
        self._moved = {}


def length(tensors: Sequence[Tensor]) -> Tensor:
    """‖·‖₂ of all tensors together: of half precision in float32, of sharded tensors as a whole."""
    dense = [t.coalesce().values() if t.is_sparse else t for t in tensors]
    short = any(t.dtype in (torch.float16, torch.bfloat16) for t in dense)
    norms: Sequence[Tensor] = torch._foreach_norm(dense, 2, torch.float32 if short else None)
    norms = [n.full_tensor() if hasattr(n, "full_tensor") else n for n in norms]  # of a DTensor
    if len({n.device for n in norms}) > 1:
        norms = [n.to(norms[0].device) for n in norms]
    return torch.linalg.vector_norm(torch.stack(norms))
