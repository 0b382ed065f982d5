"""The gradient of the soft rank r(θ) = rank_λ(F(θ)) as a penalty has it, against what it should be.

With g the gradient of `fisher_rank` by autograd, and J̃ = (L_iᵀ J_i)_i formed row by row, F = J̃ᵀJ̃/n:

    closed_form         ‖g − c‖/‖g‖,    c = ⟨λ (F + λ)⁻², dF/dθ⟩, the matrix in front of dF held fixed
    finite_differences  |gᵀv − d|/‖g‖,   d the central difference of fourth order of r along a standard normal
                        v, by eigenvalues
    probes              mᵀg/‖g‖² − 1,    m the mean of the gradients of `fisher_rank_probes`, one for each
                        draw; its standard error is that between draws

The Gram matrix, its Cholesky factor and the conjugate gradients
that make g and m are not used in c and d. For small networks: J̃ has n C rows, and a pullback each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from flattrain.core.concave import eigenvalues
from flattrain.core.losses import root_of
from flattrain.core.probes import direction, over_parameters
from flattrain.core.trace import mean_of_probes
from flattrain.core.trees import axpy
from flattrain.measures.fisher_rank import fisher_rank
from flattrain.measures.fisher_rank_probes import fisher_rank_probes
from flattrain.ranges import Count, Positive, checked
from flattrain.types import Draw, Estimate, Measure, Params, Seen, Statistic

STEP = 1e-3  # of the finite differences: their error is of order STEP⁴, rounding's of order 1e-16/STEP
FIVE_POINTS = {-2: 1 / 12, -1: -2 / 3, 1: 2 / 3, 2: -1 / 12}
_WORDS = {
    "closed_form": "relative error of the soft rank's gradient by autograd against its closed form",
    "finite_differences": "relative error of the soft rank's gradient along a direction against finite "
    "differences",
    "probes": "relative error of the mean over probes of the soft rank's gradient, along the exact one",
}


def _matrix(seen: Seen, params: Params, outputs: Tensor, create: bool) -> Tensor:
    """F (P, P) from J̃ (n C, P), one pullback for each row."""
    root = root_of(seen.criterion, outputs, seen.target, "rank_gradient_error")
    spread = torch.eye(len(outputs), dtype=root.dtype, device=root.device)
    columns = [spread[i][:, None] * root[i, :, c] for i in range(len(outputs)) for c in range(root.shape[-1])]
    live = list(params.values())
    rows = [torch.autograd.grad(outputs, live, v, retain_graph=True, create_graph=create) for v in columns]
    wide = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
    return wide.T @ wide / len(outputs)


def _along(gradient: Sequence[Tensor], v: Sequence[Tensor]) -> Tensor:
    return torch.stack([(g * t).sum() for g, t in zip(gradient, v, strict=True)]).sum()


@checked
def rank_gradient_error(
    *,
    against: Literal["closed_form", "finite_differences", "probes"] = "closed_form",
    lam: Positive = 1e-2,
    probes: Count = 4,
    iterations: Count = 50,
) -> Measure:
    """One of the three at λ = `lam`; `probes` draws, solved by `iterations` of conjugate gradients each."""
    exact = fisher_rank(lam=lam)
    drawn = fisher_rank_probes(lam=lam, probes=probes, iterations=iterations)

    def statistic(seen: Seen, noise: Mapping[str, Tensor]) -> Statistic:
        live = seen._replace(differentiable=True)
        assert exact.on_batch is not None
        params = list(seen.params.values())
        value = exact.on_batch(live, {})
        g = torch.autograd.grad(value, params, retain_graph=True, materialize_grads=True)
        size = torch.stack([part.square().sum() for part in g]).sum().sqrt()
        if against == "closed_form":
            f = _matrix(seen, seen.params, seen.outputs, create=True)
            middle = torch.linalg.inv(f.detach() + lam * torch.eye(len(f), dtype=f.dtype, device=f.device))
            c = torch.autograd.grad((lam * middle @ middle * f).sum(), params, materialize_grads=True)
            off = torch.stack([(a - b).square().sum() for a, b in zip(g, c, strict=True)]).sum().sqrt()
            return {"error": off / size}
        if against == "finite_differences":
            v = direction(noise, probes, seen.params)
            slope = sum(w * _rank(seen, v, k * STEP) for k, w in FIVE_POINTS.items()) / STEP
            return {"error": (_along(g, list(v.values())) - slope).abs() / size}
        ranks = drawn.statistic(live, noise)["rank"]
        each = [_along(torch.autograd.grad(r, params, retain_graph=True), g) for r in ranks]
        return {"error": torch.stack(each) / size.square() - 1}

    def _rank(seen: Seen, v: Params, length: float) -> Tensor:
        moved = {k: p.detach().requires_grad_() for k, p in axpy(length, v, seen.params).items()}
        values = eigenvalues(_matrix(seen, moved, seen.run(moved, seen.inputs), create=False))
        return (values / (values + lam)).sum()

    def draws(seen: Seen) -> dict[str, Draw]:
        last = over_parameters(seen.params, "normal", probes + 1)
        return drawn.draws(seen) | {k: d for k, d in last.items() if k.startswith(f"{probes}.")}

    def reduce(s: Statistic) -> Estimate:
        return mean_of_probes(s["error"]) if s["error"].ndim else Estimate(s["error"])

    return Measure(
        "rank_gradient_error",
        statistic,
        reduce,
        f"{_WORDS[against]}, at λ = {lam:g}",
        combine="whole",
        layers=None,
        draws=draws,
        order=3,
    )
