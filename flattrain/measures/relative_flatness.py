"""Relative flatness κ of a linear layer z = Wφ + b (Petzka et al. 2021). Small κ is flat.

    κ = Σ_{s,t} ⟨w_s, w_t⟩ Tr H_{s,t},    H_{s,t} = ∂²L/∂w_s ∂w_t,   w_s the rows of W (biases apart)

When the loss is separable over examples, ∂²ℓ/∂W∂W = (∇²_z ℓ) ⊗ φφᵀ, hence

    κ = mean_i ‖φ_i‖² Tr(W Wᵀ ∇²_z ℓ_i) = mean_i ‖φ_i‖² Δ_φ ℓ_i

the Laplacian of the loss in the layer's *input*: no Hessian of the weights is ever needed.

    head     W is the last layer and S = ∇²_z ℓ is known: closed form, exact, the cost of a plain step
    relu     the tail behind the layer is piecewise linear, so ∇²_z ℓ = Σ_c g_c g_cᵀ with the columns of
             S = L Lᵀ pulled back: κ = mean ‖φ‖² Σ_c ‖Wᵀ g_c‖², exact by K vector-Jacobian products
    probe    Δ_φ ℓ = E vᵀ ∇²_φ ℓ v, v Rademacher of the shape of φ: one Hessian-vector product per probe
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from flattrain.core.eager import need_separable
from flattrain.core.trace import mean_of_probes
from flattrain.ranges import Count, Refused, checked
from flattrain.types import Draw, Estimate, Measure, Seen, Statistic, Tap


def _squared_norm(tap: Tap, layer: str) -> Tensor:
    if tap.input.ndim != 2:
        raise Refused(
            f"relative flatness of {layer!r} needs one row of features per example, but its input has "
            f"shape {tuple(tap.input.shape)}; choose a layer that sees (n, features)"
        )
    return tap.input.square().sum(-1)


def _is_head(seen: Seen, tap: Tap) -> bool:
    return seen.outputs is tap.output


def _head(seen: Seen, layer: str) -> Tensor:
    tap = seen.taps[layer]
    if not _is_head(seen, tap) or seen.criterion.trace_with is None:
        raise Refused(
            f"the head form needs {layer!r} to produce the outputs, under cross entropy or squared "
            "error; use form='probe'"
        )
    return (_squared_norm(tap, layer) * seen.criterion.trace_with(tap.output, tap.weight)).mean()


def _relu(seen: Seen, layer: str) -> Tensor:
    need_separable(seen, "relative flatness")
    tap = seen.taps[layer]
    if seen.criterion.factor is None:
        raise Refused("the relu form needs cross entropy or squared error; use form='probe'")
    total = torch.zeros_like(seen.outputs[:, 0])
    for column in seen.criterion.factor(seen.outputs).unbind(-1):
        (g,) = torch.autograd.grad(seen.outputs, tap.output, column, create_graph=True)
        total = total + (g @ tap.weight).square().sum(-1)
    return (_squared_norm(tap, layer) * total).mean()


def _probe(seen: Seen, layer: str, probes: Mapping[str, Tensor]) -> Tensor:
    need_separable(seen, "relative flatness")
    tap = seen.taps[layer]
    scale = _squared_norm(tap, layer)
    # δ is the gradient of the *sum* of losses in z: separability makes row i that of example i alone.
    (delta,) = torch.autograd.grad(seen.loss * len(scale), tap.output, create_graph=True)
    values = []
    for v in probes.values():
        u = v @ tap.weight.T
        slope = (delta * u).sum()
        (hu,) = torch.autograd.grad(slope, tap.output, create_graph=True, materialize_grads=True)
        values.append((scale * (hu * u).sum(-1)).mean())
    return torch.stack(values)


_ORDER = {"head": 1, "relu": 2, "probe": 3, "auto": 3}
_WORDS = {
    "head": "closed form of the last layer",
    "relu": "exact for a piecewise-linear tail",
    "probe": "feature-space Hutchinson probes",
    "auto": "closed form for a head, else feature-space probes",
}


@checked
def relative_flatness(
    *,
    layer: str = "head",
    form: Literal["auto", "head", "relu", "probe"] = "auto",
    probes: Count = 1,
) -> Measure:
    """κ of the weight matrix of `layer`; `auto` takes the closed form where the layer is the head."""

    def chosen(seen: Seen) -> str:
        if form != "auto":
            return form
        head = _is_head(seen, seen.taps[layer]) and seen.criterion.trace_with is not None
        return "head" if head else "probe"

    def statistic(seen: Seen, noise: Mapping[str, Tensor]) -> Statistic:
        forms: dict[str, Callable[[], Tensor]] = {
            "head": lambda: _head(seen, layer),
            "relu": lambda: _relu(seen, layer),
            "probe": lambda: _probe(seen, layer, noise),
        }
        return {"kappa": forms[chosen(seen)]()}

    def draws(seen: Seen) -> dict[str, Draw]:
        if chosen(seen) != "probe":
            return {}
        shape = tuple(seen.taps[layer].input.shape)
        return {str(k): Draw("rademacher", shape, per_example=True) for k in range(probes)}

    def reduce(s: Statistic) -> Estimate:
        return mean_of_probes(s["kappa"]) if s["kappa"].ndim else Estimate(s["kappa"])

    return Measure(
        "relative_flatness",
        statistic,
        reduce,
        f"relative flatness of the weight matrix of {layer!r}, {_WORDS[form]}",
        layers=(layer,),
        draws=draws,
        order=_ORDER[form],
        after=layer,
    )
