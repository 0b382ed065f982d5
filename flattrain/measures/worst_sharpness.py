"""Worst-case sharpness: the largest rise of the loss in a ball of parameters, found by gradient ascent.

    mean over groups B of m examples of  max { L_B(w + D v) − L_B(w) : ‖v‖_p <= ρ },
    D = I, or diag|w| (adaptive);   p = 2 or ∞

The quantity, the groups of m = 128, and the settings of the ascent (start at 0, momentum 0.75, first step
2ρ, 20 steps) are as implemented in the code of Andriushchenko et al. 2023 (arXiv 2302.07011). That code
runs Auto-PGD, which halves the step when progress stalls; here the step is halved, and the ascent taken
up again from the best point, at each of Auto-PGD's checkpoints whatever the progress: a projected
gradient ascent without randomness or decisions. Its value is a lower bound on the maximum, and never
below 0.

    u = Π(v + step · ĝ),    v ← Π(v + 0.75 (u − v) + 0.25 (v − v_before)),    Π the projection on the ball
    ĝ = g/‖g‖ (l2) or sign g (linf), g the gradient in v

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


def checkpoints(steps: int) -> set[int]:
    """Steps after which the step size halves: 22 % of all, then at gaps that shrink by 3 % down to 6 %."""
    percent, gap, out = 22, 22, set()
    while percent < 100:
        out.add(-(-percent * steps // 100))  # rounded up
        gap = max(gap - 3, 6)
        percent += gap
    return out


def ascend(value_at: Callable[[Params], Tensor], start: Params, rho: float, norm: str, steps: int) -> Params:
    """The v of the largest value over ‖v‖ <= ρ, from `start`, as far as `steps` gradient steps find it."""
    slope = torch.func.grad_and_value(value_at)
    halvings = checkpoints(steps)
    v = before = start
    gradient, value = slope(v)
    best, best_v, best_gradient, size = value, v, gradient, 2 * rho
    for k in range(1, steps + 1):
        u = _project(trees.axpy(size, _direction(gradient, norm), v), rho, norm)
        # The first step has no momentum.
        keep = 1.0 if k == 1 else MOMENTUM
        moved = {n: v[n] + keep * (u[n] - v[n]) + (1 - keep) * (v[n] - before[n]) for n in v}
        v, before = _project(moved, rho, norm), v
        gradient, value = slope(v)
        better = value > best
        best = torch.where(better, value, best)
        best_v = {n: torch.where(better, v[n], best_v[n]) for n in v}
        best_gradient = {n: torch.where(better, gradient[n], best_gradient[n]) for n in v}
        if k in halvings:
            size, v, before, gradient = size / 2, best_v, best_v, best_gradient
    return best_v


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
        f"with {norm} norm at most ρ = {rho:g}, by {steps} steps of projected gradient ascent, mean over "
        f"groups of {group} examples",
        combine="examples",
    )
