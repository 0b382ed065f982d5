"""Step sizes that look at the loss along the step: θ ← θ + η u, with u the optimizer's own update.

A step size sees the line φ(η) = f(θ + η u) alone, f the objective on the step's batch (penalties included,
label noise and the like not). u contains the learning rate: with plain SGD at lr = 1, u = −∇f and η is the
step size in the plain sense; the η of cdat and polyak do not feel lr, as they are of degree −1 in u.

    cdat     η = σ n̄ / (d̄ + ε),   n = max(−φ'(0), 0) = max(−∇f·u, 0),   d = |φ''(0)| = |uᵀ∇²f u|
             n̄, d̄ averaged over steps by m̄ ← β m̄ + (1 − β) m from 0, whose bias cancels in the ratio.
             σ = 1 goes to the minimum of the quadratic along u, σ = 2 twice as far: to the edge of
             stability (Roulet et al. 2024, arXiv 2407.06183). One Hessian-vector product per step.
    armijo   the largest η = η₀ kᵗ, t = 0 … halvings, with φ(η) ≤ φ(0) + c η φ'(0);   k = `shrink`.
             Reset: η₀ = min(growth · η of the step before, largest), at first `largest`. Where no trial is
             small enough η = 0, and the next step begins at growth times the smallest trial.
    warm_up  η = min(t/steps, 1) at step t = 1, 2, …: the optimizer's own lr, reached along a straight line.
    schedule η = 1 before step `start` (counted from 0), from then on `factor`; with a cosine
             last + (factor − last) (1 + cos π s)/2 instead, s rising from 0 at `start` to 1 at `stop`.
    polyak   η = min((φ(0) − f*) / (−c φ'(0)), largest): SPS_max (Loizou et al. 2021); f* = `lower`.

Where u does not descend (φ'(0) ≥ 0) those that look at the line stand still: η = 0. So does cdat where u
meets no curvature.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.func import grad, grad_and_value, vmap

from flattrain.core import trees
from flattrain.core.eager import unsafe
from flattrain.ranges import Count, Fraction, NonNegative, Positive, Refused, Steps, checked
from flattrain.training.objective import Objective
from flattrain.types import Batch, Memory, Params

OWN = "step size:"  # of what the state remembers

Line = Callable[[Tensor], Tensor]  # η -> φ(η), both scalars


@dataclass(frozen=True)
class StepSize:
    """`choose(line, memory) -> memory`, in which "size" is η; `init` has its memory before the first step.

    order : how many derivatives of the line it takes.
    """

    init: dict[str, float]
    choose: Callable[[Line, Memory], Memory]
    order: int = 1


@checked
def cdat(*, sigma: Positive = 2.0, smoothing: Fraction = 0.0, epsilon: NonNegative = 0.0) -> StepSize:
    """The curvature dynamics aware tuner: σ times the greedy step."""
    if smoothing == 1:
        raise Refused("cdat: smoothing must be < 1, for at 1 nothing new is seen")

    def choose(line: Line, memory: Memory) -> Memory:
        def slope(eta: Tensor) -> tuple[Tensor, Tensor]:
            first: Tensor = grad(line)(eta)
            return first, first

        second, first = grad(slope, has_aux=True)(torch.zeros_like(memory["size"]))
        seen = {"descent": (-first).clamp(min=0), "curvature": second.abs()}
        mean = {k: smoothing * memory[k] + (1 - smoothing) * v for k, v in seen.items()}
        return mean | {"size": sigma * mean["descent"] * trees.inverse(mean["curvature"] + epsilon)}

    return StepSize({"size": 0.0, "descent": 0.0, "curvature": 0.0}, choose, order=2)


@checked
def armijo(
    *,
    largest: Positive = 1.0,
    slope: Fraction = 1e-4,
    shrink: Fraction = 0.5,
    growth: Positive = 2.0,
    halvings: Count = 10,
) -> StepSize:
    """Backtracking line search; all trials are evaluated at once, `halvings` + 1 forward passes per step."""

    def choose(line: Line, memory: Memory) -> Memory:
        first, here = grad_and_value(line)(torch.zeros_like(memory["size"]))
        start = (growth * memory["last"]).clamp(max=largest)
        trials = start * shrink ** torch.arange(halvings + 1, dtype=start.dtype, device=start.device)
        enough = (vmap(line)(trials) <= here + slope * trials * first) & (first < 0)
        size = torch.where(enough, trials, 0.0).amax()
        return {"size": size, "last": torch.where(size > 0, size, trials[-1])}

    return StepSize({"size": 0.0, "last": largest / growth}, choose)


@checked
def polyak(*, lower: float = 0.0, c: Positive = 1.0, largest: Positive = 1.0) -> StepSize:
    """The step that would close the gap to `lower` if the loss fell on a straight line, over c."""

    def choose(line: Line, memory: Memory) -> Memory:
        first, here = grad_and_value(line)(torch.zeros_like(memory["size"]))
        gap = (here - lower).clamp(min=0)
        return {"size": (gap * trees.inverse(-c * first)).clamp(max=largest)}

    return StepSize({"size": 0.0}, choose)


@checked
def warm_up(*, steps: Count = 500) -> StepSize:
    """The learning rate rises linearly over the first `steps` steps, and stays."""

    def choose(line: Line, memory: Memory) -> Memory:
        return {"size": (memory["size"] + 1 / steps).clamp(max=1)}

    return StepSize({"size": 0.0}, choose)


@checked
def schedule(
    *,
    shape: Literal["constant", "cosine"] = "constant",
    start: Steps = 0,
    stop: Steps | None = None,
    factor: Positive = 1.0,
    last: NonNegative = 0.0,
) -> StepSize:
    """The learning rate as it is, and from step `start` on times `factor`, there annealed by a cosine."""
    if shape == "cosine" and (stop is None or stop <= start):
        raise Refused(f"schedule: shape 'cosine' needs stop > start = {start}, got {stop}")

    def choose(line: Line, memory: Memory) -> Memory:
        now = memory["taken"]
        after = torch.full_like(now, factor)
        if stop is not None and shape == "cosine":
            done = ((now - start) / (stop - start)).clamp(0, 1)
            after = last + (factor - last) * (1 + (math.pi * done).cos()) / 2
        return {"size": torch.where(now < start, 1.0, after), "taken": now + 1}

    return StepSize({"size": 1.0, "taken": 0.0}, choose)


def unmoved(step_size: StepSize, stacked: Params) -> Memory:
    """What the step size remembers before the first step, for each of the stacked seeds."""
    first = next(iter(stacked.values()))
    return {OWN + name: first.new_full(first.shape[:1], value) for name, value in step_size.init.items()}


def along(
    objective: Objective,
    step_size: StepSize,
    params: Params,
    proposed: Params,
    memory: Memory,
    batch: Batch,
    buffers: Params,
) -> tuple[Params, Memory]:
    """From `params` towards what the optimizer proposes, as far as the step size says, for one seed."""
    value = objective.value(buffers)
    update = {k: proposed[k] - params[k] for k in params}

    def line(eta: Tensor) -> Tensor:
        return value(trees.axpy(eta, update, params), batch)[0]

    own = {k.removeprefix(OWN): v for k, v in memory.items() if k.startswith(OWN)}
    chosen = step_size.choose(line, own)
    moved = trees.axpy(chosen["size"], update, params)
    return moved, memory | {OWN + name: chosen[name] for name in own}


def guard_line(objective: Objective, step_size: StepSize) -> None:
    """A penalty that takes derivatives itself, and two more along the line: see `core.eager`."""
    norms = [name for name, part in objective.module.named_modules() if unsafe(part)]
    if step_size.order > 1 and norms and any(p.measure.order > 1 for p in objective.penalties):
        raise Refused(
            f"cdat takes second derivatives of the penalties, third ones of layer {norms[0]!r}, which torch "
            "gets wrong; call flattrain.core.eager.eager(model) before, or take another step size"
        )
