"""Efficient SAM (Du et al. 2022): a part of the ascent, and the second gradient on a part of the batch.

    S     each tensor of the parameters with probability β, afresh at every step
    ε     (ρ/β) g_S/‖g_S‖ on S, 0 elsewhere
    g̃     ∇L_B(θ + ε) for all parameters, B the share γ of the batch whose loss rises most from θ to θ + ε

As in the authors' code: whole tensors are chosen, and the norm is over the chosen ones. B has ⌊γ n⌋ examples
and at least one (there one fewer, by a strict comparison). β = γ = 1 is SAM. The cost is 1 + γ gradients and
two passes forward for the losses; that code has the losses at θ from its first gradient.

`losses` gives the loss of each example, (params, batch) -> (n,); in a recipe it is the objective's.
"""

from __future__ import annotations

import math

import torch

from flattrain.core import trees
from flattrain.ranges import Fraction, NonNegative, Refused, checked
from flattrain.rules.second_look import second_look
from flattrain.types import Batch, Draw, GradFn, Logs, OfBatch, Params, Rule


@checked
def esam(
    *,
    rho: NonNegative = 0.05,
    beta: Fraction = 0.6,
    gamma: Fraction = 0.5,
    losses: OfBatch | None = None,
) -> Rule:
    """SAM on some tensors and on the examples that it hurts most; the defaults are for a ResNet-18."""
    if losses is None:
        raise Refused(
            "esam: needs losses, a function (params, batch) -> the loss of each example; a recipe has it "
            "for nets without buffers"
        )
    if beta == 0:
        raise Refused("esam: beta must be above 0, or no tensor is ever perturbed")
    each = losses

    def look(grad_fn: GradFn, params: Params, batch: Batch, g: Params, radius: float) -> tuple[Params, Logs]:
        some = {k: v * _chosen(batch, k, beta).to(v.dtype) for k, v in g.items()}
        there = trees.axpy(radius / beta * trees.inverse(trees.norm(some)), some, params)
        count = max(1, math.floor(gamma * len(batch.y) + 1e-9))
        if count < len(batch.y):
            _need_no_rows(batch)
            rises = each(there, batch) - each(params, batch)
            picked = rises.topk(count).indices
            batch = batch._replace(x=batch.x[picked], y=batch.y[picked])
        return grad_fn(there, batch)

    def draws(params: Params, batch: Batch) -> dict[str, Draw]:
        return {f"rule.{k}": Draw("normal", ()) for k in params}

    return Rule(second_look(rho, look), draws)


def _chosen(batch: Batch, name: str, beta: float) -> torch.Tensor:
    """True with probability β: the noise is normal, its distribution function uniform."""
    return torch.special.ndtr(batch.noise[f"rule.{name}"]) <= beta


def _need_no_rows(batch: Batch) -> None:
    """Refuse noise with a row per example in the penalties, which are named "number:name"."""
    for name, noise in batch.noise.items():
        if name.split(":")[0].isdigit() and noise.ndim and len(noise) == len(batch.y):
            raise Refused(
                f"esam takes its second gradient on a part of the batch, and the noise {name!r} of a penalty "
                "has a row per example; take gamma: 1"
            )
