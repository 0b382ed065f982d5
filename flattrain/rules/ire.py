"""IRE, implicit regularization enhancement (Wang et al. 2024, 2405.20763): longer steps where it is flat.

    θ ← θ + (1 + κ P) Δ,     Δ the optimizer's step, P = 1 on flat coordinates and 0 on sharp ones

A coordinate is flat when its diagonal Fisher estimate h = B · g_B ⊙ g_B is among the share `flat` of smallest
ones; the batch size B does not change the order. Coordinates that tie with the last flat one are flat too.
P is taken anew every `every` steps from the gradient that this rule is given: SAM's in `[ire, sam]`.

With plain SGD this is the gradient g + κ P g. With momentum or Adam it is not, and the authors' code
(wmz9/IRE-algorithm-framework) acts on the step Δ, weight decay included. So does this rule: it leaves the
gradient alone and lengthens the step (`StatefulRule.moved`); a loop of one's own must call that.

Defaults as in the authors' runs of a ViT on ImageNet: the sharpest 0.2 left out, κ = 2, every 10 steps. They
switch it on late and let κ decay: a schedule around the rule does both, its share scales κ.
"""

from __future__ import annotations

import torch

from flattrain.core import trees
from flattrain.ranges import Count, Fraction, NonNegative, checked
from flattrain.types import Batch, GradFn, Logs, Memory, MindfulGradFn, Params, StatefulRule


@checked
def ire(*, kappa: NonNegative = 2.0, flat: Fraction = 0.8, every: Count = 10) -> StatefulRule:
    """κ, the share of flat coordinates, and how often they are chosen anew."""

    def init(params: Params) -> Memory:
        first = next(iter(params.values()))
        return {"kappa": first.new_zeros(())} | {f"flat.{k}": torch.zeros_like(v) for k, v in params.items()}

    def wrap(grad_fn: GradFn) -> MindfulGradFn:
        def gradient(params: Params, batch: Batch, memory: Memory) -> tuple[Params, Logs, Memory]:
            g, logs = grad_fn(params, batch)
            masks = {k: memory[f"flat.{k}"] for k in params}
            if batch.moment.step % every == 0:
                masks = flat_coordinates(g, flat)
            now = torch.full_like(memory["kappa"], kappa * batch.moment.strength)
            return g, logs, {"kappa": now} | {f"flat.{k}": mask for k, mask in masks.items()}

        return gradient

    def moved(before: Params, after: Params, memory: Memory) -> Params:
        more = {k: memory[f"flat.{k}"] * (after[k] - v) for k, v in before.items()}
        return trees.axpy(memory["kappa"], more, after)

    return StatefulRule(init, wrap, moved=moved)


def flat_coordinates(g: Params, share: float) -> Params:
    """1 where g² is among the `share` of smallest ones over all parameters together, else 0."""
    h = trees.flatten(g) ** 2
    count = round(share * len(h))
    if count == 0:
        return {k: torch.zeros_like(v) for k, v in g.items()}
    last = h.sort().values[count - 1]
    return trees.unflatten((h <= last).to(h.dtype), g)
