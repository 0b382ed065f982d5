"""The Hessian of the loss behind a linear layer z = Wφ + b, example by example, in the forms there are.

With A_i = ∇²_z ℓ_i the layer's whole curvature is A_i ⊗ φ_i φ_iᵀ, and ∇²_φ ℓ_i = Wᵀ A_i W.

    head     the layer gives the outputs, so A = S is known in closed form
    relu     what follows is piecewise linear, so A = Σ_c g_c g_cᵀ with the columns of S = L Lᵀ pulled back
    exact    A e_k for every unit k, one Hessian-vector product each
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from flattrain.core.eager import need_separable
from flattrain.core.losses import root_vectors
from flattrain.ranges import Refused
from flattrain.types import Seen, Tap

Form = Literal["head", "relu", "exact"]


class Diagonals(NamedTuple):
    """Of the Hessian of each example's loss: in the pre-activations z, and in the features φ."""

    z: Tensor  # (n, K): A_kk
    phi: Tensor  # (n, D): (Wᵀ A W)_dd


def is_head(seen: Seen, tap: Tap) -> bool:
    """Whether the layer gives the network's outputs under a loss whose output Hessian is known."""
    return seen.outputs is tap.output and seen.criterion.factor is not None


def diagonals(seen: Seen, tap: Tap, form: Form) -> Diagonals:
    """The two diagonals, for a layer that sees one row of features per example."""
    need_separable(seen, "the curvature")
    if tap.input.ndim != 2 or tap.output.ndim != 2:
        raise Refused(
            f"layer {tap.layer!r} has an input of shape {tuple(tap.input.shape)}; this measure needs a "
            "linear layer that sees one row of features per example"
        )
    if form == "exact":
        return _exact(seen, tap)
    columns = columns_at(seen, tap, form)
    return Diagonals(
        torch.stack([g.square() for g in columns]).sum(0),
        torch.stack([(g @ tap.weight).square() for g in columns]).sum(0),
    )


def columns_at(seen: Seen, tap: Tap, form: Form) -> list[Tensor]:
    """The columns g_c of each example's root of the output Hessian, pulled back to the layer's output."""
    columns = root_vectors(seen, None, "relative flatness")
    if form == "head":
        if not is_head(seen, tap):
            raise Refused(
                f"the head form needs {tap.layer!r} to produce the outputs, under cross entropy or squared "
                "error; use form='probe'"
            )
        return columns
    return [torch.autograd.grad(seen.outputs, tap.output, column, create_graph=True)[0] for column in columns]


def slope(seen: Seen, tap: Tap) -> Tensor:
    """δ = ∂(n · loss)/∂z: separability makes row i the gradient of example i alone."""
    (delta,) = torch.autograd.grad(
        seen.loss * len(seen.outputs), tap.output, create_graph=True, materialize_grads=True
    )
    return delta


def product(delta: Tensor, tap: Tap, u: Tensor) -> Tensor:
    """∇²_z (n · loss) u, with u of the shape of z and live: it does not depend on z, so nothing is lost."""
    along = (delta * u).sum()
    if not along.requires_grad:  # a loss that is linear in z
        return torch.zeros_like(tap.output)
    (hu,) = torch.autograd.grad(along, tap.output, create_graph=True, materialize_grads=True)
    return hu


def _exact(seen: Seen, tap: Tap) -> Diagonals:
    delta = slope(seen, tap)
    z, phi = [], torch.zeros_like(tap.input)
    for k, row in enumerate(tap.weight):
        unit = torch.zeros_like(tap.output)
        unit[:, k] = 1
        column = product(delta, tap, unit)
        z.append(column[:, k])
        phi = phi + (column @ tap.weight) * row
    return Diagonals(torch.stack(z, 1), phi)
