"""Worst-case sharpness: the largest rise of the loss in a ball of parameters, found by gradient ascent.

    mean over groups B of m examples of  max { L_B(w + D v) − L_B(w) : ‖v‖_p <= ρ },
    D = I, or diag|w| (adaptive);   p = 2 or ∞

The quantity, the groups of m = 128, and the settings of the ascent (start at 0, momentum 0.75, first step
2ρ, 20 steps) are as implemented in the code of Andriushchenko et al. 2023 (arXiv 2302.07011), which runs
Auto-PGD (Croce & Hein 2020, arXiv 2003.01690):

    u = Π(v + step · ĝ),    v ← Π(v + 0.75 (u − v) + 0.25 (v − v_before)),    Π the projection on the ball
    ĝ = g/‖g‖ (l2) or sign g (linf), g the gradient in v

At each checkpoint the step is halved, and the ascent taken up again from the best point, at rest, if fewer
than 0.75 of the steps since the last one raised the value, or if the best value is that of the last one and
the step was not halved there. Nothing is random. The value is a lower bound on the maximum, and never
below 0.

As ρ → 0 the value is ρ ‖D∇L_B‖ in the dual norm (l2, l1). Smaller groups give larger values, so m belongs
to the number. The gradient is that at the v found, held fixed: the ball does not depend on w, so this is
the gradient of the maximum (Danskin).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from flattrain.core import trees
from flattrain.core.perturbations import loss_of, scales, shifted
from flattrain.ranges import Count, Positive, Refused, checked
from flattrain.types import Estimate, Measure, Params, Seen, Statistic

MOMENTUM = 0.75
PROGRESS = 0.75  # the share of steps that must raise the value


def checkpoints(steps: int) -> set[int]:
    """Steps after which progress is looked at: 22 % of all, then at gaps that shrink by 3 % down to 6 %."""
    percent, gap, out = 22, 22, set()
    while percent < 100:
        out.add(-(-percent * steps // 100))  # rounded up
        gap = max(gap - 3, 6)
        percent += gap
    return out


def ascend(value_at: Callable[[Params], Tensor], start: Params, rho: float, norm: str, steps: int) -> Params:
    """The v of the largest value over ‖v‖ <= ρ, from `start`, as far as `steps` gradient steps find it."""
    slope = torch.func.grad_and_value(value_at)
    looks = checkpoints(steps)
    v = before = start
    gradient, value = slope(v)
    best, best_v, best_gradient = value, v, gradient
    size, raised, last = torch.full_like(value, 2 * rho), torch.zeros_like(value), 0
    halved, best_there = torch.zeros_like(value, dtype=torch.bool), value
    for k in range(1, steps + 1):
        u = _project(trees.axpy(size, _direction(gradient, norm), v), rho, norm)
        # The first step has no momentum.
        keep = 1.0 if k == 1 else MOMENTUM
        moved = {n: v[n] + keep * (u[n] - v[n]) + (1 - keep) * (v[n] - before[n]) for n in v}
        v, before = _project(moved, rho, norm), v
        lower = value
        gradient, value = slope(v)
        raised = raised + (value > lower)
        better = value > best
        best = torch.where(better, value, best)
        best_v, best_gradient = _where(better, v, best_v), _where(better, gradient, best_gradient)
        if k in looks:
            halved = (raised < PROGRESS * (k - last)) | (~halved & (best == best_there))
            size, value = torch.where(halved, size / 2, size), torch.where(halved, best, value)
            v, before = _where(halved, best_v, v), _where(halved, best_v, before)
            gradient = _where(halved, best_gradient, gradient)
            raised, last, best_there = torch.zeros_like(raised), k, best
    return best_v


def _where(holds: Tensor, one: Params, other: Params) -> Params:
    return {n: torch.where(holds, one[n], other[n]) for n in one}


def _direction(gradient: Params, norm: str) -> Params:
    if norm == "linf":
        return {k: g.sign() for k, g in gradient.items()}
    length = trees.norm(gradient).clamp(min=torch.finfo(next(iter(gradient.values())).dtype).tiny)
    return {k: g / length for k, g in gradient.items()}


def _project(v: Params, rho: float, norm: str) -> Params:
    if norm == "linf":
        return {k: t.clamp(-rho, rho) for k, t in v.items()}
    shrink = (rho / trees.norm(v)).clamp(max=1)  # ρ/0 = ∞, clamped to 1
    return {k: t * shrink for k, t in v.items()}


@checked
def worst_sharpness(
    *,
    rho: Positive = 0.5,
    scale: Literal["plain", "adaptive"] = "adaptive",
    norm: Literal["l2", "linf"] = "l2",
    logits: Literal["raw", "normalised"] = "raw",
    group: Count = 128,
    steps: Count = 20,
) -> Measure:
    """Mean over groups of `group` examples of the worst rise of the loss in the ball of radius ρ."""

    def statistic(seen: Seen, noise: Mapping[str, Tensor]) -> Statistic:
        if not isinstance(seen.inputs, Tensor):
            raise Refused("worst_sharpness splits the batch into groups; give the inputs as one tensor")
        loss = loss_of(seen, logits)
        fixed = {k: p.detach() for k, p in seen.params.items()}
        start = {k: torch.zeros_like(p) for k, p in fixed.items()}
        total = torch.zeros_like(seen.loss)
        for x, y in zip(seen.inputs.split(group), seen.target.split(group), strict=True):

            def moved(w: Params, v: Params, x: Tensor = x, y: Tensor = y) -> Tensor:
                return loss(shifted(w, scales(w, scale), v), x, y)

            v = ascend(partial(moved, fixed), start, rho, norm, steps)
            rise = moved(seen.params, v) - loss(seen.params, x, y)
            total = total + rise * (len(x) / len(seen.target))
        return {"rise": total}

    return Measure(
        "worst_sharpness",
        statistic,
        lambda s: Estimate(s["rise"]),
        f"largest rise of the loss of the {logits} logits over {scale} perturbations of the parameters "
        f"with {norm} norm at most ρ = {rho:g}, by {steps} steps of Auto-PGD, mean over "
        f"groups of {group} examples",
        combine="examples",
    )
