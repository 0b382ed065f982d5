"""Soft rank of the whole network's Fisher without a matrix: probes and conjugate gradients.

    rank_λ(F) = E zᵀ F (F + λ)⁻¹ z = E [‖z‖² − λ zᵀu],     u = (F + λ)⁻¹ z,  z with independent ±1 entries

Any network whose loss has a known output Hessian, no structure of layers needed, memory of a few gradients:
the output Hessian's products are derivatives of the loss's slope, so that a large vocabulary does not matter.
The gradient is that of λ uᵀ F(θ) u with u held fixed, unbiased and without differentiating the solver:

    d zᵀF(F + λ)⁻¹z = λ zᵀ(F + λ)⁻¹ dF (F + λ)⁻¹ z = λ uᵀ dF u

With Λ in the place of λ both F and z → F z are those of Λ^-½ F Λ^-½, and λ is 1 (core.ridge).

Each step of conjugate gradients takes two reverse sweeps; what is left after `iterations` of them leaves the
value too large, never too small. The spread of one probe is large (std² = 2 Σ_{i≠j} R_ij², R = F(F + λ)⁻¹).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from flattrain.core.eager import need_examples_apart
from flattrain.core.losses import need_root
from flattrain.core.probes import direction, over_parameters
from flattrain.core.ridge import ridge, scales
from flattrain.core.trace import mean_of_probes
from flattrain.core.trees import axpy, dot
from flattrain.ranges import Count, Positive, checked
from flattrain.types import Measure, Params, Seen, Statistic


def _solve(product: Callable[[Params], Params], z: Params, lam: float, iterations: int) -> Params:
    """(F + λ)⁻¹ z after a fixed number of steps of conjugate gradients from zero."""
    u = {k: torch.zeros_like(v) for k, v in z.items()}
    r, p = z, z
    size = dot(r, r)
    for _ in range(iterations):
        ap = axpy(lam, p, product(p))
        # Once solved, r is zero and so is every further step.
        step = size / dot(p, ap).clamp(min=torch.finfo(size.dtype).tiny)
        u, r = axpy(step, p, u), axpy(-step, ap, r)
        before, size = size, dot(r, r)
        p = axpy(size / before.clamp(min=torch.finfo(size.dtype).tiny), p, r)
    return u


@checked
def fisher_rank_probes(
    *, lam: Positive | Mapping[str, Positive] = 1e-2, probes: Count = 1, iterations: Count = 50
) -> Measure:
    """rank_λ(F) over all trainable parameters; a penalty of the batch, in evaluation of the whole set.

    lam : a number, or a table {name of a parameter or a layer: number}, see `core.ridge`.
    """
    number, table, words = ridge("fisher_rank_probes", lam)

    def statistic(seen: Seen, noise: Mapping[str, Tensor]) -> Statistic:
        need_examples_apart(seen, "fisher_rank_probes")
        need_root(seen.criterion, "fisher_rank_probes")
        names, live = list(seen.params), list(seen.params.values())
        scale = scales("fisher_rank_probes", seen, table, names)
        dual = 0 * seen.outputs  # on the graph, because torch.func allows no requires_grad_
        (slope,) = torch.autograd.grad(seen.loss, seen.outputs, create_graph=True)
        pulled = torch.autograd.grad(seen.outputs, live, dual, create_graph=True, materialize_grads=True)

        def scaled(v: Params) -> Params:
            """Λ^-½ v, and v where λ is one number."""
            return {k: t * scale[id(seen.params[k])] for k, t in v.items()} if scale else v

        def pushed(v: Params, create: bool) -> Tensor:
            """J Λ^-½ v, as the derivative of u ↦ Jᵀu."""
            along = list(scaled({k: v[k] for k in names}).values())
            (out,) = torch.autograd.grad(pulled, dual, along, create_graph=create, retain_graph=True)
            return out

        def curved(w: Tensor, create: bool) -> Tensor:
            """S w / n of the outputs."""
            (out,) = torch.autograd.grad(slope, seen.outputs, w, create_graph=create, retain_graph=True)
            return out

        def product(v: Params) -> Params:
            middle = curved(pushed(v, False), False).detach()
            back = torch.autograd.grad(seen.outputs, live, middle, retain_graph=True, materialize_grads=True)
            return scaled(dict(zip(names, back, strict=True)))

        values = []
        for k in range(probes):
            z = direction(noise, k, seen.params)
            u = {name: t.detach() for name, t in _solve(product, z, number, iterations).items()}
            fixed = sum(t.numel() for t in z.values()) - number * dot(z, u)
            moved = pushed(u, True)
            quadratic = number * (moved * curved(moved, True)).sum()
            values.append(fixed.detach() + quadratic - quadratic.detach())
        return {"rank": torch.stack(values)}

    return Measure(
        "fisher_rank_probes",
        statistic,
        lambda s: mean_of_probes(s["rank"]),
        f"soft rank of the Fisher at λ = {number:g}{words}, {probes} Hutchinson probes solved by "
        f"{iterations} steps of conjugate gradients",
        combine="whole",
        draws=lambda seen: over_parameters(seen.params, "rademacher", probes),
        order=3,
    )
