"""The parameter groups of an optimizer as trees {name: tensor}."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

from flattrain.types import Params

Group = dict[str, Any]


def each(groups: Iterable[Group]) -> Iterator[Tensor]:
    return (p for group in groups for p in group["params"])


def gradients(groups: Iterable[Group]) -> list[Tensor]:
    return [p.grad for p in each(groups) if p.grad is not None]


def named(groups: Iterable[Group]) -> Params:
    return {
        f"{i}.{name}": p
        for i, group in enumerate(groups)
        for name, p in zip(_names(group), group["params"], strict=True)
    }


def radii(groups: Iterable[Group]) -> dict[str, float]:
    return {f"{i}.{name}": group["rho"] for i, group in enumerate(groups) for name in _names(group)}


def _names(group: Group) -> list[str]:
    """Those of `model.named_parameters()` where the optimizer was given them, else numbers."""
    return list(group.get("param_names") or map(str, range(len(group["params"]))))
