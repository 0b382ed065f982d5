"""Whether the methods of a group compute the same thing; a benchmark of different quantities says nothing.

"equal" values are compared in float64 as ‖v − r‖ / ‖r‖, r the reference method's: gradients of the whole
penalised step, or Kronecker factors. Those with noise are compared by the mean of independent draws, in
standard errors.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.cases import Group, Method, Work, problem

DRAWS, FEW, SIGMAS = 32, 12, 4.0  # few on the residual nets, where they are dear
WEIGHT = 1.0  # of the penalty, so that its gradient is not lost beside the loss's


class Deviation(NamedTuple):
    size: float
    unit: str  # "relative" or "standard errors"
    agrees: bool


def deviations(group: Group, methods: list[Method]) -> dict[str, Deviation]:
    """By method; those that are not compared, and the reference itself, are left out."""
    reference = next((m for m in methods if m.check == "reference"), None)
    others = [m for m in methods if m.check in ("equal", "mean")]
    if reference is None or not others:
        return {}
    kept: dict[str, Tensor | list[float]] = {}

    def of_reference(check: str) -> Tensor | list[float]:
        if check not in kept:
            kept[check] = _taken(group, reference, check)
        return kept[check]

    return {m.name: _compare(group, of_reference(m.check), _taken(group, m, m.check)) for m in others}


def _taken(group: Group, method: Method, check: str) -> Tensor | list[float]:
    """The method's value in float64, or draws of its number in float32."""
    assert method.work is not None
    if check == "equal":
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)  # for what packages make themselves
        try:
            work: Work = method.work(problem(group.network, torch.float64, WEIGHT))
            assert work.value is not None
            return work.value().clone()
        finally:
            torch.set_default_dtype(before)
    scalar: Callable[[], float] | None = method.work(problem(group.network)).scalar
    assert scalar is not None
    torch.manual_seed(1)
    first = [scalar(), scalar()]
    if first[0] == first[1]:
        return first
    count = DRAWS if group.network.startswith("MLP") else FEW
    return first + [scalar() for _ in range(count - 2)]


def _compare(group: Group, reference: Tensor | list[float], other: Tensor | list[float]) -> Deviation:
    if isinstance(reference, Tensor) and isinstance(other, Tensor):
        size = float((other - reference).norm() / reference.norm())
        return Deviation(size, "relative", size <= group.tolerance)
    assert isinstance(reference, list) and isinstance(other, list)
    error = sum(statistics.variance(draws) / len(draws) for draws in (reference, other)) ** 0.5
    size = abs(statistics.mean(reference) - statistics.mean(other)) / error if error else 0.0
    return Deviation(size, "standard errors", size <= SIGMAS)
