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
from flattrain.types import Seen, Tap


def vectors(seen: Seen, sketch: Mapping[str, Tensor] | None = None) -> dict[str, tuple[Tensor, Tensor]]:
    """{layer: (φ' (n, D'), g (C n, K))} for every tapped layer: the rows whose second moments are A and B.

    `sketch` holds ε (n, outputs), and then C = 1; without it C is the number of outputs.
    """
    need_separable(seen, "soft rank")
    if seen.criterion.factor is None:
        raise Refused(
            f"soft rank needs the output Hessian of the loss, unknown for {seen.criterion.name!r}; "
            "use cross entropy or squared error (flattrain.core.losses)"
        )
    for name, tap in seen.taps.items():
        if tap.input.ndim != 2:
            raise Refused(
                f"layer {name!r} has inputs of shape {tuple(tap.input.shape)}; KFAC covers one row per "
                "example: choose layers=[...] that see (n, features)"
            )
    root = seen.criterion.factor(seen.outputs)  # (n, K, K)
    columns = root.unbind(-1) if sketch is None else [einsum(root, sketch["sketch"], "n k c, n c -> n k")]
    outputs = [tap.output for tap in seen.taps.values()]
    pulled = [
        torch.autograd.grad(seen.outputs, outputs, column, create_graph=True, materialize_grads=True)
        for column in columns
    ]
    return {
        name: (_augmented(tap), torch.cat(gradients))
        for (name, tap), gradients in zip(seen.taps.items(), zip(*pulled, strict=True), strict=True)
    }


def factors(seen: Seen, sketch: Mapping[str, Tensor] | None = None) -> dict[str, tuple[Tensor, Tensor]]:
    """{layer: (A (D', D'), B (K, K))} for every tapped layer."""
    return {
        name: (einsum(phi, phi, "n i, n j -> i j") / len(phi), einsum(g, g, "n i, n j -> i j") / len(phi))
        for name, (phi, g) in vectors(seen, sketch).items()
    }


def _augmented(tap: Tap) -> Tensor:
    if tap.bias is None:
        return tap.input
    return torch.cat([tap.input, torch.ones_like(tap.input[:, :1])], 1)
