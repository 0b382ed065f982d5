"""Rules that look at the gradient at two points: the pattern of the SAM family.

    g = ∇L(θ),   ε = ρ d(θ, g),   g̃ = ∇L(θ + ε),   the rule's gradient: combine(g, g̃)

A member is a direction d and what it makes of the two gradients (`TwoPass`). The same member serves the
functional rules here (`as_rule`, `stateless`) and the optimizers of `flattrain.optim`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from flattrain.core import trees
from flattrain.types import Batch, GradFn, Logs, Memory, MindfulGradFn, Params, Rule, StatefulRule


class Direction(NamedTuple):
    """d = scale · along, kept apart so that a whole tree need not be multiplied twice."""

    along: Params
    scale: Tensor


def nothing(params: Params) -> Memory:
    """The memory of a member that has none."""
    return {}


@dataclass(frozen=True)
class TwoPass:
    """One member of the family, as functions of trees {parameter: tensor}.

    direction : (θ, g, ‖g‖, memory) -> (d, memory). Zero where there is nowhere to ascend, never NaN.
    combine   : (g, g̃, memory) -> (gradient, memory); None where it is g̃, so that g need not be kept.
    every     : the second gradient is taken at every so many steps; in between, `between` stands for it.
    between   : (g, ‖g‖, memory) -> gradient.
    init      : θ -> the memory before the first step.
    """

    direction: Callable[[Params, Params, Tensor, Memory], tuple[Direction, Memory]]
    combine: Callable[[Params, Params, Memory], tuple[Params, Memory]] | None = None
    every: int = 1
    between: Callable[[Params, Tensor, Memory], Params] | None = None
    init: Callable[[Params], Memory] = nothing


def as_rule(member: TwoPass, rho: float) -> StatefulRule:
    """The member as a rule of radius ρ; the moment's strength scales the radius."""

    def wrap(grad_fn: GradFn) -> MindfulGradFn:
        def gradient(params: Params, batch: Batch, memory: Memory) -> tuple[Params, Logs, Memory]:
            g, logs = grad_fn(params, batch)
            radius = rho * batch.moment.strength
            if radius == 0:
                return g, logs, memory
            if member.between is not None and batch.moment.step % member.every:
                return member.between(g, trees.norm(g), memory), logs, memory
            direction, memory = member.direction(params, g, trees.norm(g), memory)
            there = trees.axpy(radius * direction.scale, direction.along, params)
            ascended, after = grad_fn(there, batch)
            logs = logs | {f"ascended/{k}": v for k, v in after.items()}
            if member.combine is None:
                return ascended, logs, memory
            grads, memory = member.combine(g, ascended, memory)
            return grads, logs, memory

        return gradient

    return StatefulRule(member.init, wrap)


def stateless(member: TwoPass, rho: float) -> Rule:
    """A member without memory, as a plain rule."""
    ruled = as_rule(member, rho)

    def wrap(grad_fn: GradFn) -> GradFn:
        mindful = ruled(grad_fn)

        def gradient(params: Params, batch: Batch) -> tuple[Params, Logs]:
            grads, logs, _ = mindful(params, batch, {})
            return grads, logs

        return gradient

    return Rule(wrap)
