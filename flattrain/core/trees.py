"""Linear algebra on parameter dicts: the few operations that a rule or an operator needs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from flattrain.types import Params


def dot(a: Params, b: Params) -> Tensor:
    """⟨a, b⟩ = Σ over all entries."""
    return torch.stack([(a[k] * b[k]).sum() for k in a]).sum()


def norm(a: Params) -> Tensor:
    """‖a‖₂ over all entries together."""
    return dot(a, a).sqrt()


def axpy(alpha: Tensor | float, x: Params, y: Params) -> Params:
    """y + α x, out of place."""
    return {k: y[k] + alpha * x[k] for k in y}


def flatten(a: Params) -> Tensor:
    """One vector, in the order of the dict."""
    return torch.cat([v.reshape(-1) for v in a.values()])


def unflatten(vector: Tensor, like: Params) -> Params:
    """The inverse of `flatten`, with the shapes of `like`."""
    parts = vector.split([v.numel() for v in like.values()])
    return {k: part.reshape(v.shape) for (k, v), part in zip(like.items(), parts, strict=True)}


def stack(trees: list[Params]) -> Params:
    """Seeds as a leading dimension S."""
    return {k: torch.stack([t[k] for t in trees]) for k in trees[0]}


def pick(stacked: Mapping[str, Tensor], index: int) -> Params:
    """Seed `index` of a stacked tree."""
    return {k: v[index] for k, v in stacked.items()}
