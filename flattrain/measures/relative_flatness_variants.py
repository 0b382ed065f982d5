"""Relatives of relative flatness κ (see `measures.relative_flatness`), for a linear layer on (n, D) features.

With A_i = ∇²_z ℓ_i, h_i = diag(Wᵀ A_i W) and H_{s,t} = mean_i A_i,st φ_i φ_iᵀ:

    normalised   Σ_jk mean_i(φ_ij² h_ik) σ_k²/σ_j², κ after dividing each feature by its standard deviation σ
                 over the data and multiplying its weights by it: invariant when neurons are rescaled one by
                 one, as κ is not. Dead features (σ = 0) are left out. The published scripts divide by the
                 standard deviation in one place and by the variance, which is not invariant, in others:
                 that is σ_k⁴/σ_j⁴ in the place of σ_k²/σ_j²
    layer_trace  Tr H, H the Hessian in W
    max          Σ_s ‖w_s‖² λ_max(H_{s,s}), as the published code takes it: diagonal blocks alone
    simplified   ‖W‖²_F Tr H, H the Hessian in W (arXiv 2307.02337, section 3.2)
    published    what the released FAM code penalises for a head in the place of κ: the blocks are read at
                 wrong indices and detached, (1/D) Σ_ij ⟨w_i, w_j⟩ Σ_a mean_k S_k,ai φ_kj φ_ka with only
                 ⟨w_i, w_j⟩ differentiated. For comparison: about 1 % of κ/D, and no curvature gradient
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from einops import einsum
from torch import Tensor

from flattrain.core.functional import tapped
from flattrain.core.labels import need_one_row
from flattrain.core.losses import output_root
from flattrain.core.tail import Diagonals, Form, diagonals, is_head
from flattrain.core.weights import relative_weights
from flattrain.ranges import Refused, checked
from flattrain.types import Estimate, Measure, Seen, Statistic, Tap

_ORDER = {"auto": 3, "head": 1, "relu": 2, "exact": 3}


def _variant(
    name: str,
    layer: str,
    form: Form | Literal["auto"],
    statistic: Callable[[Seen, Tap, Diagonals], Statistic],
    reduce: Callable[[Statistic], Estimate],
    definition: str,
) -> Measure:
    """A measure of a layer's features and the diagonals of the Hessian behind it."""

    def of_pass(seen: Seen, noise: Mapping[str, Tensor]) -> Statistic:
        tap = tapped(seen, layer)
        cheapest: Form = "head" if is_head(seen, tap) else "exact"
        return statistic(seen, tap, diagonals(seen, tap, cheapest if form == "auto" else form))

    return Measure(name, of_pass, reduce, definition, layers=(layer,), order=_ORDER[form], after=layer)


@checked
def normalised_relative_flatness(
    *,
    layer: str = "head",
    form: Literal["auto", "head", "relu", "exact"] = "auto",
    divisor: Literal["deviation", "variance"] = "deviation",
) -> Measure:
    """κ with features divided by their standard deviation, or, as a published script has it, their variance.

    `auto` is exact, in closed form for a head.
    """

    def statistic(seen: Seen, tap: Tap, behind: Diagonals) -> Statistic:
        square = tap.input.square()
        # The deviations of the features are taken over what the loss counts, so that batches combine.
        own = relative_weights(seen.criterion, seen.outputs, seen.target)
        own = torch.ones_like(square[:, 0]) if own is None else own
        return {
            "spread": einsum(square, behind.phi, "n j, n k -> j k") / len(square),
            "mean": (own[:, None] * tap.input).mean(0),
            "square": (own[:, None] * square).mean(0),
        }

    def reduce(s: Statistic) -> Estimate:
        variance = s["square"] - s["mean"].square()
        # A constant feature's variance is rounding of its square.
        alive = variance > 1e-6 * s["square"]
        scale = variance.where(alive, 1.0)
        scale = scale.square() if divisor == "variance" else scale
        weights = (alive / scale)[:, None] * (alive * scale)[None]
        return Estimate((s["spread"] * weights).sum())

    return _variant(
        "normalised_relative_flatness",
        layer,
        form,
        statistic,
        reduce,
        f"relative flatness of {layer!r} with features of unit standard deviation, {form} form"
        if divisor == "deviation"
        else f"relative flatness of {layer!r} with features divided by their variance, {form} form",
    )


@checked
def relative_flatness_max(
    *, layer: str = "head", form: Literal["auto", "head", "relu", "exact"] = "auto"
) -> Measure:
    """Σ_s ‖w_s‖² λ_max(H_{s,s}) over the rows of the layer's weight."""

    def statistic(seen: Seen, tap: Tap, behind: Diagonals) -> Statistic:
        blocks = einsum(behind.z, tap.input, tap.input, "n s, n i, n j -> s i j") / len(tap.input)
        return {"blocks": blocks, "squares": tap.weight.square().sum(1)}

    def reduce(s: Statistic) -> Estimate:
        top = torch.linalg.eigvalsh(s["blocks"].to(torch.float64))[:, -1]
        return Estimate((s["squares"] * top).sum())

    return _variant(
        "relative_flatness_max",
        layer,
        form,
        statistic,
        reduce,
        f"sum over rows of {layer!r} of squared norm times top eigenvalue of the row's Hessian block",
    )


def _trace(tap: Tap, behind: Diagonals) -> Tensor:
    """Tr H = mean ‖φ‖² Tr ∇²_z ℓ."""
    return (tap.input.square().sum(1) * behind.z.sum(1)).mean()


@checked
def simplified_relative_flatness(
    *, layer: str = "head", form: Literal["auto", "head", "relu", "exact"] = "auto"
) -> Measure:
    """‖W‖²_F Tr H of the layer's weight; at least κ where H is positive semi-definite."""

    def statistic(seen: Seen, tap: Tap, behind: Diagonals) -> Statistic:
        return {"trace": _trace(tap, behind), "squares": tap.weight.square().sum()}

    return _variant(
        "simplified_relative_flatness",
        layer,
        form,
        statistic,
        lambda s: Estimate(s["trace"] * s["squares"]),
        f"squared norm of the weight of {layer!r} times the trace of its Hessian",
    )


@checked
def layer_trace(*, layer: str = "head", form: Literal["auto", "head", "relu", "exact"] = "auto") -> Measure:
    """Tr H of the layer's weight, H its block of the Hessian of the loss."""

    def statistic(seen: Seen, tap: Tap, behind: Diagonals) -> Statistic:
        return {"trace": _trace(tap, behind)}

    return _variant(
        "layer_trace",
        layer,
        form,
        statistic,
        lambda s: Estimate(s["trace"]),
        f"trace of the Hessian of the loss in the weight of {layer!r}",
    )


@checked
def published_fam(*, layer: str = "head") -> Measure:
    """What the released FAM code penalises for the last layer: not κ, and without a curvature gradient."""

    def statistic(seen: Seen, noise: Mapping[str, Tensor]) -> Statistic:
        need_one_row(seen, "published_fam")
        tap = tapped(seen, layer)
        rows, columns = tap.weight.shape
        if not is_head(seen, tap) or rows > columns:
            raise Refused(
                f"published_fam is defined where {layer!r} gives the outputs and has no more rows than "
                "columns"
            )
        phi, root = tap.input.detach(), output_root(seen, "published_fam").detach()
        s = einsum(root, root, "n a c, n i c -> n a i")
        found = einsum(s, phi[:, :rows], phi[:, :rows], "n a i, n j, n a -> i j") / len(phi)
        inner = tap.weight @ tap.weight.T
        return {"value": (inner * found).sum() / columns}

    return Measure(
        "published_fam",
        statistic,
        lambda s: Estimate(s["value"]),
        f"the quantity that the released FAM code penalises at {layer!r}, which is not relative flatness",
        layers=(layer,),
    )
