"""What the theory says SAM does near a manifold of minima, on toys of a few parameters (Wen et al. 2022)."""

from __future__ import annotations

import pytest
import torch
from torch.func import grad

from flattrain.rules.sam import sam
from flattrain.types import Batch

FIRST, SECOND = torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 1.0])


def curvatures(z):
    """F1 > F2 > 0, with minimisers FIRST, SECOND and, of the sum, between them at 2:1."""
    return 3 + (z - FIRST.to(z)).square().sum(), 1 + (z - SECOND.to(z)).square().sum() / 2


def toy(params, batch):
    """F1 x² + F2 y² for y = 0, else one of the two as an example by itself, with probability a half."""
    z, x = params["z"], params["x"]
    f1, f2 = curvatures(z)
    return (batch.x * torch.stack([f1 * x[0] ** 2, f2 * x[1] ** 2])).sum()


def slopes(params, batch):
    """The gradient of `toy`, by hand: a thousand steps a second would not do."""
    z, x = params["z"], params["x"]
    f1, f2 = curvatures(z)
    a, b = batch.x * x**2
    dz = 2 * a * (z - FIRST.to(z)) + b * (z - SECOND.to(z))
    return {"z": dz, "x": 2 * batch.x * torch.stack([f1, f2]) * x}, {}


def settled(take, steps, eta):
    params = {"z": torch.tensor([0.3, 0.9]), "x": torch.tensor([0.05, 0.05])}
    for step in range(steps):
        g = take(params, step)
        params = {k: v - eta * g[k] for k, v in params.items()}
    return params["z"]


def test_the_toys_gradient_is_right():
    params = {"z": torch.randn(2), "x": torch.randn(2)}
    batch = Batch(torch.tensor([1.0, 2.0]), torch.zeros(()))
    wanted = grad(toy)(params, batch)
    for k, mine in slopes(params, batch)[0].items():
        torch.testing.assert_close(mine, wanted[k])


@pytest.fixture(scope="module")
def ends():
    """Where the three algorithms end that approximate the same loss L(θ + ρ ∇L/‖∇L‖)."""
    torch.set_default_dtype(torch.float64)
    rho, eta, steps = 0.1, 0.04, 8000
    whole, step = Batch(torch.ones(2), torch.zeros(())), sam(rho=rho)(slopes)
    full = settled(lambda p, t: step(p, whole)[0], steps, eta)

    examples = [Batch(row, torch.zeros(())) for row in torch.eye(2)]
    chance = torch.randint(2, (steps,), generator=torch.Generator().manual_seed(0)).tolist()
    single = settled(lambda p, t: step(p, examples[chance[t]])[0], steps, eta)

    def ascended(p):
        g, _ = slopes(p, whole)
        size = torch.cat([v.reshape(-1) for v in g.values()]).norm()
        return toy({k: v + rho * g[k] / size for k, v in p.items()}, whole)

    through = settled(lambda p, t: grad(ascended)(p), steps // 2, eta / 4)
    return {"full batch": full, "one example": single, "gradient of the ascended loss": through}
