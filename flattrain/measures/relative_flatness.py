"""Relative flatness κ of a linear or convolutional layer (Petzka et al. 2021). Small κ is flat.

    κ = Σ_{s,t} ⟨w_s, w_t⟩ Tr H_{s,t},    H_{s,t} = ∂²L/∂w_s ∂w_t,   w_s the rows of W (biases apart)

For a linear layer z = Wφ + b and a loss that is separable over examples, ∂²ℓ/∂W∂W = (∇²_z ℓ) ⊗ φφᵀ, hence

    κ = mean_i ‖φ_i‖² Tr(W Wᵀ ∇²_z ℓ_i) = mean_i ‖φ_i‖² Δ_φ ℓ_i

the Laplacian of the loss in the layer's *input*: no Hessian of the weights is ever needed. A convolution, or
a linear layer on a sequence, is a linear map on S patches φ_p with one W, z_p = Wφ_p + b, so

    ∂²ℓ/∂W∂W = Σ_pq (∂²ℓ/∂z_p ∂z_q) ⊗ φ_p φ_qᵀ,    κ = mean_i Σ_pq ⟨φ_p, φ_q⟩ Tr(W Wᵀ ∂²ℓ_i/∂z_p ∂z_q)

(each group of a grouped convolution is a layer of its own). Forms, cheapest first:

    head     W is the last layer and S = ∇²_z ℓ is known: closed form, exact, the cost of a plain step. Of
             tokens too, whose losses do not mix: the sum over p alone
    probe    κ = E vᵀ ∇²_φ ℓ v ‖φ‖², v Rademacher of the shape of φ: one Hessian-vector product per probe
    relu     the tail behind the layer is piecewise linear, so ∇²_z ℓ = Σ_c g_c g_cᵀ with the columns of
             S = L Lᵀ pulled back: κ = mean Σ_c ‖Σ_p φ_p (Wᵀ g_cp)ᵀ‖²_F, exact by K vector-Jacobian products
    weights  κ = E ⟨V, HV⟩, V = WZ with Z (D, D) Rademacher, taken at z: u_p = V φ_p, κ = E ⟨u, ∇²_z L u⟩. For
             patches, and the only one that holds where BatchNorm in training mode ties examples together.
             Written in weights, autograd would treat V as a constant in one slot and the gradient would
             be 15–33 % wrong; at z, u is live in both
    exact    every Hessian-vector product: S K of them. For small layers and tests
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from einops import einsum
from torch import Tensor, nn
from torch.nn import functional as F

from flattrain.core import ghost
from flattrain.core.eager import couples, need_separable
from flattrain.core.functional import tapped
from flattrain.core.layers import Outer, sides
from flattrain.core.losses import output_trace
from flattrain.core.tail import columns_at, diagonals, is_head, product, slope
from flattrain.core.trace import mean_of_probes
from flattrain.ranges import Count, Refused, checked
from flattrain.types import Draw, Estimate, Measure, Seen, Statistic, Tap

Form = Literal["auto", "head", "relu", "probe", "weights", "exact"]


def _tap(seen: Seen, layer: str) -> Tap:
    tap = tapped(seen, layer)
    if not isinstance(tap.module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
        raise Refused(
            f"relative flatness needs a linear or convolutional layer, {layer!r} is a "
            f"{type(tap.module).__name__}"
        )
    return tap


def _one_row(tap: Tap) -> bool:
    return isinstance(tap.module, nn.Linear) and tap.input.ndim == 2


def _head(seen: Seen, tap: Tap) -> Tensor:
    if not is_head(seen, tap) or seen.criterion.trace_with is None:
        raise Refused(
            f"the head form needs {tap.layer!r} to produce the outputs, under cross entropy or squared "
            "error; use form='probe'"
        )
    return (
        (tap.input * tap.input).sum(-1).flatten() @ output_trace(seen, tap.weight).flatten() / len(tap.input)
    )


def _relu(seen: Seen, tap: Tap) -> Tensor:
    need_separable(seen, "relative flatness")
    outer = sides(tap, torch.stack(columns_at(seen, tap, "relu")))
    back = einsum(outer.left, _matrix(tap, outer), "n c g s k, g k d -> n c g s d")
    return ghost.squares([Outer(back, outer.right)]).sum(1).mean()


def _probe(seen: Seen, tap: Tap, probes: Mapping[str, Tensor]) -> Tensor:
    need_separable(seen, "relative flatness")
    if not _one_row(tap):
        raise Refused(
            f"the probe form needs one row of features per example, the input of {tap.layer!r} has shape "
            f"{tuple(tap.input.shape)}; use form='weights'"
        )
    scale, delta, values = tap.input.square().sum(-1), slope(seen, tap), []
    for v in probes.values():
        u = v @ tap.weight.T
        values.append((scale * (product(delta, tap, u) * u).sum(-1)).mean())
    return torch.stack(values)


def _weights(seen: Seen, tap: Tap, probes: Mapping[str, Tensor]) -> Tensor:
    delta, values = slope(seen, tap), []
    for z in probes.values():
        groups = len(z)
        v = (tap.weight.reshape(groups, -1, z.shape[-1]) @ z).reshape(tap.weight.shape)
        u = _apply(tap, v)
        values.append((product(delta, tap, u) * u).sum() / len(tap.output))
    return torch.stack(values)


def _exact(seen: Seen, tap: Tap) -> Tensor:
    need_separable(seen, "relative flatness")
    if _one_row(tap):
        return (tap.input.square().sum(-1) * diagonals(seen, tap, "exact").phi.sum(-1)).mean()
    delta = slope(seen, tap)
    phi = sides(tap, delta[None]).right[:, 0]  # (n, G, S, D)
    weight = tap.weight.reshape(phi.shape[1], -1, phi.shape[3])
    patches = einsum(phi, phi, "n g p d, n g q d -> n g p q")
    units = einsum(weight, weight, "g k d, g l d -> g k l")
    total = torch.zeros_like(seen.loss)
    for at in range(tap.output[0].numel()):
        unit = torch.zeros_like(tap.output).flatten(1)
        unit[:, at] = 1
        unit = unit.reshape(tap.output.shape)
        row = sides(tap, unit[None]).left[:, 0]
        column = sides(tap, product(delta, tap, unit)[None]).left[:, 0]
        # ⟨φ_p, φ_q⟩ (W Wᵀ)_kl (∂²ℓ/∂z_pk ∂z_ql), summed over q and l
        total = total + (row * (patches @ column @ units)).sum() / len(phi)
    return total


def _matrix(tap: Tap, outer: Outer) -> Tensor:
    return tap.weight.reshape(outer.left.shape[2], outer.left.shape[4], outer.right.shape[4])


def _apply(tap: Tap, weight: Tensor) -> Tensor:
    layer: Any = tap.module
    if isinstance(layer, nn.Linear):
        return F.linear(tap.input, weight)
    conv: Any = layer._conv_forward
    out: Tensor = conv(tap.input, weight, None)
    return out


_ORDER = {"head": 1, "relu": 2, "probe": 3, "weights": 3, "exact": 3, "auto": 3}
_WORDS = {
    "head": "closed form of the last layer",
    "relu": "exact for a piecewise-linear tail",
    "probe": "feature-space Hutchinson probes",
    "weights": "weight-space Hutchinson probes",
    "exact": "exact by all Hessian-vector products",
    "auto": "closed form for a head, else Hutchinson probes",
}


@checked
def relative_flatness(
    *,
    layer: str = "head",
    form: Literal["auto", "head", "relu", "probe", "weights", "exact"] = "auto",
    probes: Count = 1,
) -> Measure:
    """κ of the weight matrix of `layer`.

    `auto` takes the closed form where the layer is the head, feature-space probes where it sees one row per
    example and nothing behind it ties examples together, and weight-space probes elsewhere.
    """

    def chosen(seen: Seen, tap: Tap) -> Form:
        if form != "auto":
            return form
        if is_head(seen, tap) and seen.criterion.trace_with is not None and isinstance(tap.module, nn.Linear):
            return "head"
        coupled = any(couples(part) for _, part in seen.norms_after[layer])
        return "probe" if _one_row(tap) and not coupled else "weights"

    def statistic(seen: Seen, noise: Mapping[str, Tensor]) -> Statistic:
        tap = _tap(seen, layer)
        forms: dict[str, Callable[[], Tensor]] = {
            "head": lambda: _head(seen, tap),
            "relu": lambda: _relu(seen, tap),
            "probe": lambda: _probe(seen, tap, noise),
            "weights": lambda: _weights(seen, tap, noise),
            "exact": lambda: _exact(seen, tap),
        }
        return {"kappa": forms[chosen(seen, tap)]()}

    def draws(seen: Seen) -> dict[str, Draw]:
        tap = _tap(seen, layer)
        way = chosen(seen, tap)
        if way == "probe":
            want = Draw("rademacher", tuple(tap.input.shape), per_example=True)
        elif way == "weights":
            groups = getattr(tap.module, "groups", 1)
            want = Draw("rademacher", (groups, *2 * (tap.weight[0].numel(),)))
        else:
            return {}
        return {str(k): want for k in range(probes)}

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
