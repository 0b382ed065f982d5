"""Tilted SAM (Li, Zhou & Bilmes 2025, arXiv 2410.22656): between the mean and the worst loss around θ.

    objective   (1/t) log E_ε exp(t L(θ + ε))            t = 0: the mean;  t → ∞: the worst case
    gradient    Σ_k w_k ∇L(θ + ε_k),   w = softmax(t · losses)
    small t     E L + (t/2) Var L + O(t²)

The practical rule, as in the authors' code (litian96/TSAM): ε_k is a standard normal shortened to a ball of
radius r, followed by one normalised ascent step of length ρ from θ + ε_k; losses and gradients are those at
the end of it. Without a ball (r = 0) all samples are SAM's. A step costs 2 · samples gradients; with ρ = 0,
which leaves the objective as written above, `samples`.

The loss is the logged one: penalties inside the rule are in the gradients, not in the weights. The schedule's
share scales both lengths.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flattrain.core import trees
from flattrain.core.probes import direction, over_parameters
from flattrain.ranges import Count, NonNegative, checked
from flattrain.rules.sam import SAM
from flattrain.rules.two_pass import stateless
from flattrain.types import Batch, Draw, GradFn, Logs, Params, Rule


@checked
def tilted_sam(
    *, tilt: NonNegative = 1.0, radius: NonNegative = 1.0, rho: NonNegative = 0.05, samples: Count = 3
) -> Rule:
    """t, r, ρ and the number of perturbations; the log `tilted/loss` is the objective over those drawn."""

    def wrap(grad_fn: GradFn) -> GradFn:
        ascend = stateless(SAM, rho)(grad_fn)

        def gradient(params: Params, batch: Batch) -> tuple[Params, Logs]:
            ball = radius * batch.moment.strength
            if ball == 0:
                return ascend(params, batch)
            found = [ascend(_moved(params, batch, k, ball), batch) for k in range(samples)]
            logs = {name: torch.stack([log[name] for _, log in found]) for name in found[0][1]}
            losses = logs.get("ascended/loss", logs["loss"])
            weights = torch.softmax(tilt * losses, 0)
            means = {name: values.mean(0) for name, values in logs.items()}
            return trees.mix(weights, [g for g, _ in found]), means | {"tilted/loss": tilted(losses, tilt)}

        return gradient

    def draws(params: Params, batch: Batch) -> dict[str, Draw]:
        return over_parameters(params, "normal", samples) if radius else {}

    return Rule(wrap, draws)


def tilted(losses: Tensor, tilt: float) -> Tensor:
    """(1/t) log mean exp(t · losses)."""
    if tilt == 0:
        return losses.mean()
    top = losses.max().detach()  # differences from the top keep their digits when t is small
    return top + torch.log1p(torch.expm1(tilt * (losses - top)).mean()) / tilt


def _moved(params: Params, batch: Batch, k: int, ball: float) -> Params:
    """θ + ε_k, ‖ε_k‖ at most `ball`."""
    z = {n: v.to(params[n].dtype) for n, v in direction(batch.noise, k, params).items()}
    return trees.axpy((ball * trees.inverse(trees.norm(z))).clamp(max=1), z, params)
