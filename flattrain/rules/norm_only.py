"""SAM on normalisation layers only (SAM-ON, Mueller et al. 2023), and on any other part of a network.

    ε = ρ d(θ_S, g_S) on the parameters S, 0 on the others;   g̃ = ∇L(θ + ε) for all of them

The direction, and the norm in it, see S alone. In SAM-ON S is γ and β of every normalisation, found by the
type of the layer (`core.layers.normalisation_parameters`); the authors' code goes by the names of parameters.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from flattrain.core import trees
from flattrain.ranges import NonNegative, Refused, checked, suggest
from flattrain.rules.adaptive import adaptive
from flattrain.rules.sam import SAM
from flattrain.rules.two_pass import Direction, TwoPass, stateless
from flattrain.types import Memory, Params, Rule


def only(names: Iterable[str], member: TwoPass) -> TwoPass:
    """The member with a direction that is restricted to the named parameters."""
    chosen = tuple(dict.fromkeys(names))

    def direction(params: Params, g: Params, size: Tensor, memory: Memory) -> tuple[Direction, Memory]:
        for name in chosen:
            if name not in params:
                raise Refused(f"there is no trainable parameter {name!r}{suggest(name, params)}")
        own = {k: g[k] for k in chosen}
        part, memory = member.direction({k: params[k] for k in chosen}, own, trees.norm(own), memory)
        whole = {k: part.along[k] if k in part.along else torch.zeros_like(v) for k, v in g.items()}
        return Direction(whole, part.scale), memory

    return replace(member, direction=direction)


@checked
def sam_on(
    *,
    rho: NonNegative = 0.5,
    ascent: Literal["steepest", "elementwise", "layerwise"] = "steepest",
    eta: NonNegative = 0.0,
    biases: Literal["identity", "scaled"] = "identity",
    parameters: tuple[str, ...] | None = None,
) -> Rule:
    """SAM or ASAM with ε on some parameters only: in a recipe those of the net's normalisation layers,

    unless it names others (a control at the same sparsity, say). ρ = 0.5 and η = 0 are the defaults of the
    authors' script; the run that it shows is `{ascent: elementwise, biases: scaled, rho: 10}`.
    """
    if not parameters:
        raise Refused(
            "sam_on: the net has no normalisation layer with trainable parameters; take a net that has one, "
            "or name the parameters to perturb (parameters: [...])"
        )
    member = SAM if ascent == "steepest" else adaptive(eta=eta, scale=ascent, biases=biases)
    return stateless(only(parameters, member), rho)
