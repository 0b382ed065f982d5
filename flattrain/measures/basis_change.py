"""Flatness of a layer after a change of basis of its features that leaves the network's function alone.

    φ' = T φ,   W' = W T⁻¹,   so that W'φ' + b = Wφ + b                       for a linear layer z = Wφ + b

    scale       T = c I. What it does to a layer of a ReLU net when the one before it is multiplied by c
    rotation    T = Q, Haar-distributed over orthogonal matrices
    neurons     T = diag(d), each d_j log-uniform on [1/c, c]: neurons rescaled one by one

The pre-activations z stay what they were, and with them A_i = ∇²_z ℓ_i, so the new network is measured by
giving the measure φ' and W' in place of φ and W. With h = diag(Wᵀ A W) and Tr H that of the layer's weight

    κ' = mean ‖Tφ‖² Tr(T⁻ᵀ Wᵀ A W T⁻¹),    Tr H' = mean ‖Tφ‖² Tr A

so κ is invariant under scale and rotation and Tr H under rotation alone; neither is when neurons are rescaled
one by one. With features divided by their standard deviations first, κ is Σ_jk mean(φ_j² h_k) σ_k²/σ_j²:
invariant under scale and neurons, as each σ_j takes on its d_j, and not under rotation. Divided by their
variances it is invariant under scale alone: d_j² σ_j⁴ stands against φ_j² where φ_j² σ_j² would cancel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from flattrain.core.functional import tapped
from flattrain.measures.feature_robustness import haar
from flattrain.measures.relative_flatness import relative_flatness
from flattrain.measures.relative_flatness_variants import layer_trace, normalised_relative_flatness
from flattrain.ranges import Positive, Refused, checked
from flattrain.types import Draw, Measure, Seen, Statistic, Tap

Of = Literal["relative_flatness", "normalised", "variance_normalised", "layer_trace"]
Form = Literal["head", "relu", "exact"]

_WORDS = {
    "scale": "multiplied by {c:g}",
    "rotation": "turned by a random orthogonal matrix",
    "neurons": "multiplied one by one by random factors, log-uniform on [1/{c:g}, {c:g}]",
}


@checked
def changed_basis(
    *,
    of: Literal[
        "relative_flatness", "normalised", "variance_normalised", "layer_trace"
    ] = "relative_flatness",
    change: Literal["scale", "rotation", "neurons"] = "scale",
    factor: Positive = 5.0,
    layer: str = "head",
    form: Literal["head", "relu", "exact"] = "exact",
) -> Measure:
    """What `of` is when the features entering `layer` are Tφ and its weight is W T⁻¹; c is `factor`.

    form : of the curvature behind the layer, as in `measures.relative_flatness`; all of them are exact.
    """
    inner = _measure(of, layer, form)

    def statistic(seen: Seen, noise: Mapping[str, Tensor]) -> Statistic:
        tap = _rows(seen, layer)
        if change == "scale":
            moved = tap._replace(input=factor * tap.input, weight=tap.weight / factor)
        elif change == "rotation":
            q = haar(noise["basis"])
            moved = tap._replace(input=tap.input @ q.T, weight=tap.weight @ q.T)
        else:
            # erf(g/√2) of a standard normal g is uniform on [−1, 1].
            d = (math.log(factor) * torch.erf(noise["basis"] / math.sqrt(2))).exp()
            moved = tap._replace(input=tap.input * d, weight=tap.weight / d)
        return inner.statistic(seen._replace(taps={**seen.taps, layer: moved}), {})

    def draws(seen: Seen) -> dict[str, Draw]:
        width = _rows(seen, layer).input.shape[1]
        if change == "scale":
            return {}
        return {"basis": Draw("normal", (width, width) if change == "rotation" else (width,))}

    words = _WORDS[change].format(c=factor)
    return replace(
        inner,
        name="changed_basis",
        statistic=statistic,
        draws=draws,
        definition=f"{inner.definition}, the features entering it {words} and its weight undoing that",
    )


def _measure(of: Of, layer: str, form: Form) -> Measure:
    if of == "relative_flatness":
        return relative_flatness(layer=layer, form=form)
    if of == "layer_trace":
        return layer_trace(layer=layer, form=form)
    return normalised_relative_flatness(
        layer=layer, form=form, divisor="variance" if of == "variance_normalised" else "deviation"
    )


def _rows(seen: Seen, layer: str) -> Tap:
    tap = tapped(seen, layer)
    if tap.input.ndim != 2 or tap.output.ndim != 2:
        raise Refused(
            f"changed_basis: layer {layer!r} has an input of shape {tuple(tap.input.shape)}; it needs a "
            "linear layer that sees one row of features per example"
        )
    return tap
