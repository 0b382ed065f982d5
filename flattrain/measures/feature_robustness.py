"""Feature robustness: what the loss gains when the features of a layer are rotated a little into one another.

    R(δ) = E_A [ (1/n) Σ_i ℓ(φ_i + δ A φ_i) − ℓ(φ_i) ],     A Haar-distributed over orthogonal m × m matrices

after Petzka et al. 2021, who perturb features as φ + δAφ; with orthogonal A the second order is κ.

A φ is uniform on the sphere of radius ‖φ‖, so E[Aφ] = 0, E[Aφ φᵀAᵀ] = (‖φ‖²/m) I, and at *any* point

    R(δ) = (δ²/2m) mean ‖φ‖² Δ_φ ℓ + O(δ⁴) = (δ²/2m) κ + O(δ⁴)       (κ: `measures.relative_flatness`)

for a linear layer whose input is φ. The range of δ where this holds is small: on an interpolating ReLU
net the ratio is 1.04 at δ = 0.03 and 2.4 at δ = 0.1.

A and −A are equally likely, so each draw takes the mean of both: the first-order term, which otherwise
drowns the curvature, cancels exactly and not only on average. The standard error is that over draws.
Differences of losses keep the rounding of the losses, in float32 about 1e-7 L: take no δ below 0.01 there.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from flattrain.core.functional import tapped
from flattrain.core.tail import is_head
from flattrain.core.trace import mean_of_probes
from flattrain.ranges import Count, Positive, checked
from flattrain.types import Draw, Map, Measure, Seen, Statistic


def haar(normal: Tensor) -> Tensor:
    """A Haar-distributed orthogonal matrix from a square one with independent standard normal entries.

    Q of the QR decomposition, with its columns' signs set so that R has a positive diagonal; without that the
    distribution is not invariant (Mezzadri 2007).
    """
    q, r = torch.linalg.qr(normal)
    return q * torch.where(r.diagonal() < 0, -1.0, 1.0).to(q.dtype)


def _rotated(phi: Tensor, by: Tensor) -> Tensor:
    return phi + phi @ by.T


@checked
def feature_robustness(*, layer: str = "head", delta: Positive = 0.01, probes: Count = 20) -> Measure:
    """R(δ) of the features that enter `layer`, mean over `probes` draws of A, each taken with both signs."""

    def statistic(seen: Seen, noise: Mapping[str, Tensor]) -> Statistic:
        tap = tapped(seen, layer)

        def loss(a: Tensor) -> Tensor:
            if is_head(seen, tap):
                # Nothing lies behind it: φ + aφ moves the outputs by Waφ, and no other pass is needed.
                outputs = tap.output + tap.input @ (tap.weight @ a).T
            else:
                change: Map = partial(_rotated, by=a)
                outputs = seen.run(seen.params, seen.inputs, {layer: change})
            return seen.criterion.mean(outputs, seen.target)

        gains = []
        for normal in noise.values():
            a = delta * haar(normal)
            gains.append((loss(a) + loss(-a)) / 2 - seen.loss)
        return {"gain": torch.stack(gains)}

    def draws(seen: Seen) -> dict[str, Draw]:
        width = seen.taps[layer].input.shape[-1]
        return {str(k): Draw("normal", (width, width)) for k in range(probes)}

    return Measure(
        "feature_robustness",
        statistic,
        lambda s: mean_of_probes(s["gain"]),
        f"mean gain of the loss when the features φ entering {layer!r} become φ + δAφ, δ = {delta:g}, over "
        f"{probes} Haar-orthogonal A and their negatives",
        layers=(layer,),
        draws=draws,
    )
