"""Soft rank of the Fisher in its Kronecker-factored approximation, and other concave penalties.

    rank_λ(F) = Tr F (F + λI)⁻¹ ≈ Σ_layers Σ_ij a_i b_j / (a_i b_j + λ)

with a, b the eigenvalues of the layer's factors A and B (core.kfac). λ is the Tikhonov weight of the mean
loss: PyTorch's weight_decay. Between λ → 0 (hard rank) and λ → ∞ (λ · rank → Tr F).

Not linear in the data: the mean over batches of the soft rank is *below* the soft rank of the whole set
(Jensen), so evaluation averages the factors, and a penalty on batches is a biased-low one. The sketch is
biased low for the same reason. Taking the layers one by one is biased high (pinching).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from flattrain.core.concave import Concave, eigenvalues
from flattrain.core.kfac import Sharing, factors
from flattrain.core.probes import over_outputs
from flattrain.core.ridge import ridge
from flattrain.ranges import Positive, checked
from flattrain.types import Draw, Estimate, Measure, Seen, Statistic


def spectral_sum(phi: Concave, a: Tensor, b: Tensor) -> Tensor:
    """Σ_g Σ_ij φ(a_gi b_gj) over the eigenvalues a (G, D) and b (G, K) of the factors."""
    return phi(a[..., :, None] * b[..., None, :]).sum()


@checked
def soft_rank(
    *,
    lam: Positive | Mapping[str, Positive] = 1e-2,
    layers: tuple[str, ...] | None = None,
    columns: Literal["exact", "sketch"] = "exact",
    sharing: Literal["expand", "reduce"] = "expand",
    phi: Literal["soft", "logdet", "power", "trace"] = "soft",
    power: Positive = 0.5,
    uncovered: Literal["refuse", "ignore", "dense"] = "refuse",
) -> Measure:
    """Σ φ over the KFAC spectrum of `layers` (None: all); φ = x/(x + lam) unless `phi` says otherwise.

    lam       : a number, or a table {name of a parameter or a layer: number}, see `core.ridge`. Exact for the
                Kronecker form, also where a layer's weight and bias have different numbers.
    columns   : all columns of the output factor, or one random combination of them per example.
    sharing   : how positions that share a weight (convolutions, sequences) enter the factors (core.kfac).
    uncovered : what to do with parameters whose layer has no known structure, when `layers` is None.
    """
    tikhonov = ridge("soft_rank", lam, phi)
    concave = Concave(phi, tikhonov.number, power)
    way: Sharing = sharing
    policy = uncovered if layers is None else "ignore"

    def sketch(noise: Mapping[str, Tensor]) -> Tensor | None:
        return noise["sketch"] if columns == "sketch" else None

    def statistic(seen: Seen, noise: Mapping[str, Tensor]) -> Statistic:
        out = {}
        for name, (a, b) in factors(seen, sketch(noise), way, policy, tikhonov.table).items():
            out[f"{name}.A"], out[f"{name}.B"] = a.matrix(), b.matrix()
        return out

    def reduce(s: Statistic) -> Estimate:
        names = [key.removesuffix(".A") for key in s if key.endswith(".A")]
        pairs = [(eigenvalues(s[f"{name}.A"]), eigenvalues(s[f"{name}.B"])) for name in names]
        return Estimate(torch.stack([spectral_sum(concave, a, b) for a, b in pairs]).sum())

    def on_batch(seen: Seen, noise: Mapping[str, Tensor]) -> Tensor:
        pairs = factors(seen, sketch(noise), way, policy, tikhonov.table).values()
        return torch.stack([spectral_sum(concave, a.eigenvalues(), b.eigenvalues()) for a, b in pairs]).sum()

    def draws(seen: Seen) -> dict[str, Draw]:
        if columns == "exact":
            return {}
        return {"sketch": over_outputs(seen.outputs)}

    return Measure(
        "soft_rank",
        statistic,
        reduce,
        f"{concave.words}{tikhonov.words}, KFAC per layer ({sharing}), {columns} output factor",
        layers=None if layers is None else tuple(layers),
        on_batch=on_batch,
        draws=draws,
        order=2,
    )
