"""Kronecker factors of the Fisher (= Gauss–Newton) blocks of linear layers, differentiable.

For a layer z = Wφ + b the block of the mean loss's Fisher is approximated by A ⊗ B with

    A = mean_i φ'_i φ'_iᵀ   (φ' = (φ, 1) when there is a bias)
    B = mean_i Σ_c g_ic g_icᵀ,   g_ic = (∂f_i/∂z_i)ᵀ L_i[:, c],   L_i L_iᵀ = ∇²_f ℓ_i

"exact" back-propagates all K columns of L (type-2 Fisher); "sketch" one vector L_i ε_i per example with
ε Rademacher, unbiased for B. L stays on the graph (core.losses): labels sampled from the model with the
labels detached would be unbiased in value and 84 % off in gradient. (Martens & Grosse 2015.)
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from einops import einsum
from torch import Tensor

from flattrain.core.eager import need_separable
from flattrain.ranges import Refused
from flattrain.types import Seen


def factors(seen: Seen, sketch: Mapping[str, Tensor] | None = None) -> dict[str, tuple[Tensor, Tensor]]:
    """{layer: (A (D', D'), B (K, K))} for every tapped layer. `sketch` holds ε (n, outputs) or is None."""
    if seen.criterion.factor is None:
        raise Refused(
            f"soft rank needs the output Hessian of the loss, unknown for {seen.criterion.name!r}; "
            "use cross entropy or squared error (flattrain.core.losses)"
        )
    need_separable(seen, "soft rank")
    root = seen.criterion.factor(seen.outputs)  # (n, K, K)
    columns = root.unbind(-1) if sketch is None else [einsum(root, sketch["sketch"], "n k c, n c -> n k")]
    layers = list(seen.taps)
    for name in layers:
        if seen.taps[name].input.ndim != 2:
            raise Refused(
                f"layer {name!r} has inputs of shape {tuple(seen.taps[name].input.shape)}; KFAC covers "
                "one row per example: choose layers=[...] that see (n, features)"
            )
    pulled = [
        torch.autograd.grad(
            seen.outputs,
            [seen.taps[n].output for n in layers],
            column,
            create_graph=True,
            materialize_grads=True,
        )
        for column in columns
    ]
    out = {}
    for i, name in enumerate(layers):
        tap = seen.taps[name]
        phi = tap.input if tap.bias is None else torch.cat([tap.input, torch.ones_like(tap.input[:, :1])], 1)
        g = torch.stack([column[i] for column in pulled])  # (C, n, K)
        n = len(phi)
        out[name] = (
            einsum(phi, phi, "n i, n j -> i j") / n,
            einsum(g, g, "c n i, c n j -> i j") / n,
        )
    return out
