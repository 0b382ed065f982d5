"""Where label noise takes a flat direction when the learning rate is large."""

from __future__ import annotations

import math

import torch

from flattrain.rules.noise import label_noise
from flattrain.types import Batch


def gradient(params, batch):
    """½ Σ_i (f_i − y_i)², f = (e^{z/2} a₁, √c e^{−z} a₂): on a = 0 the curvatures are e^z and c e^{−2z}.

    Element-wise over a leading dimension of runs, so that it needs no vmap.
    """
    z, a = params["z"].unsqueeze(-1), params["a"]
    rates = torch.tensor([0.5, -1.0])
    scale = torch.exp(rates * z) * torch.tensor([1.0, math.sqrt(C)])
    rest = scale * a - batch.y
    return {"z": (rest * rates * scale * a).sum(-1), "a": rest * scale}, {}


C = 1.4**2 * 0.7  # the trace e^z + c e^{−2z} is least where they are 1.4 and 0.7
ETA, DELTA = 1.0, 0.04


def test_the_stationary_point_is_that_of_the_logarithmic_form():
    """λ(z) = (e^z, c e^{−2z}), gradient noise of covariance κ H, κ = δ².

    −(κ/2) Σ log(1 − ηλ/2) is stationary where λ₁/(1 − ηλ₁/2) = 2λ₂/(1 − ηλ₂/2); the linear form (ηκ/4) Tr
    where λ₁ = 2λ₂. Mean over 400 runs after the start is forgotten; the standard error is that over runs.
    """
    runs, steps = 400, 4000
    grid = torch.linspace(-1, 1, 200_001)
    curvatures = torch.stack([grid.exp(), C * (-2 * grid).exp()])
    curvatures = torch.where(ETA * curvatures < 2, curvatures, torch.nan)
    logarithmic = -torch.log(1 - ETA * curvatures / 2).sum(0)
    best = float(grid[logarithmic.nan_to_num(math.inf).argmin()])
    linear = float(grid[curvatures.sum(0).nan_to_num(math.inf).argmin()])
    assert abs(linear - math.log(1.4)) < 1e-4 and abs(best - linear) > 0.12
    assert 0.5 < ETA * math.exp(best) < 1.5 and 0.5 < ETA * C * math.exp(-2 * best) < 1.5

    generator = torch.Generator().manual_seed(0)
    step = label_noise(delta=DELTA)(gradient)
    # half the runs start on either side of both points
    params = {"z": torch.tensor([-0.1, 0.45]).repeat(runs // 2), "a": torch.zeros(runs, 2)}
    late = torch.zeros(runs)
    for k in range(steps):
        signs = torch.randint(0, 2, (runs, 2), generator=generator) * 2.0 - 1
        g, _ = step(params, Batch(None, torch.zeros(runs, 2), {"rule.labels": signs}))
        params = {name: v - ETA * g[name] for name, v in params.items()}
        late = late + params["z"] * (k >= steps // 2) / (steps - steps // 2)
    error = float(late.std()) / math.sqrt(runs)
    assert error < 0.02 * abs(best - linear)
    assert abs(float(late.mean()) - best) < 0.1 * abs(best - linear)
