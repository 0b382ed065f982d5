"""Weights moved in place and put back bit for bit."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from flattrain.optim.sharded import alike, local
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
        self._moved = {key: local(params[key]) for key in direction.along}
        torch._foreach_copy_([self._copy(key, p) for key, p in self._moved.items()], [*self._moved.values()])
        for rho in {radius[key] for key in self._moved}:
            moves = [(params[key], along) for key, along in direction.along.items() if radius[key] == rho]
            simple = [(local(p), local(d)) for p, d in moves if alike(p, d) and not d.is_sparse]
            if simple:
                torch._foreach_add_(*map(list, zip(*simple, strict=True)), alpha=scale * rho)
            for p, d in moves:
                if d.is_sparse or not alike(p, d):
                    p.add_(d, alpha=scale * rho)

    def _copy(self, key: str, p: Tensor) -> Tensor:
        copy = self._copies.get(key)
        if copy is None or copy.shape != p.shape or copy.dtype != p.dtype or copy.device != p.device:
            copy = self._copies[key] = torch.empty_like(p)
        return copy

    @torch.no_grad()
    def undo(self) -> None:
        """Every weight that was moved, as it was."""
        if self._moved:
            torch._foreach_copy_([*self._moved.values()], [self._copies[key] for key in self._moved])
        self._moved = {}
