"""What is made of the two gradients: each formula by hand, and the members that are SAM or descent."""

from __future__ import annotations

import oracles
import pytest
import torch
from explicit import Explicit, close, far

from flattrain.core import trees
from flattrain.ranges import Refused
from flattrain.rules.gradient_pair import gnp, gsam, stable_sam, wsam
from flattrain.rules.multi_step import n_step_sam
from flattrain.rules.sam import sam

RHO = 0.3


def pair():
    it = Explicit()
    g = it.gradient(it.at)
    return it, g, it.gradient(it.at + RHO * g / g.norm())


def test_gsam():
    it, g, up = pair()
    across = g - (g @ up) / (up @ up) * up
    assert abs(float(across @ up)) < 1e-14 and across.norm() > 0.01
    mine = it.ruled(gsam(rho=RHO, alpha=0.7))
    close(mine, up - 0.7 * across)
    far(mine, up)
    close(it.ruled(gsam(rho=RHO, alpha=0.0)), it.ruled(sam(rho=RHO)), rtol=1e-15)


def test_gsam_lowers_the_ascended_loss_no_less_than_sam_to_first_order():
    it, _, up = pair()
    mine = it.ruled(gsam(rho=RHO, alpha=5.0))
    torch.testing.assert_close(mine @ up, up @ up)


def test_wsam_and_gnp():
    it, g, up = pair()
    close(it.ruled(wsam(rho=RHO, gamma=0.8)), g + 4 * (up - g))
    close(it.ruled(gnp(rho=RHO, alpha=0.8)), 0.2 * g + 0.8 * up)
    for as_sam in (wsam(rho=RHO, gamma=0.5), gnp(rho=RHO, alpha=1.0)):
        close(it.ruled(as_sam), it.ruled(sam(rho=RHO)), rtol=1e-15)
    for as_descent in (wsam(rho=RHO, gamma=0.0), gnp(rho=RHO, alpha=0.0)):
        close(it.ruled(as_descent), g, rtol=1e-14)
    with pytest.raises(Refused, match="gamma must be below 1"):
        wsam(gamma=1.0)


def test_gnp_penalises_the_gradients_norm():
    """(1 − α) g + α g̃ → ∇(L + α ρ ‖g‖) as ρ falls, an error of O(ρ²)."""
    it = Explicit()

    def penalised(v):
        return it.value(v) + 0.8 * rho * it.gradient(v).norm()

    errors = []
    for rho in (1e-2, 5e-3):
        wanted = torch.func.grad(penalised)(it.at)
        errors.append(float((it.ruled(gnp(rho=rho, alpha=0.8)) - wanted).norm()))
        far(wanted, it.gradient(it.at))
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)


def test_stable_sam_steps_as_far_as_descent():
    it, g, up = pair()
    mine = it.ruled(stable_sam(rho=RHO))
    close(mine, g.norm() / up.norm() * up)
    torch.testing.assert_close(mine.norm(), g.norm(), rtol=1e-14, atol=0)
    assert abs(float(up.norm() / g.norm()) - 1) > 0.01


def test_stable_sam_on_a_quadratic_bears_larger_steps_than_sam():
    """½ λ x²: x ← x − η λ x at SSAM's length in both, but SAM's step is η λ (|x| + ρ): it overshoots."""
    lam, rho = 1.0, 0.5

    def grad_fn(params, batch):
        return {"x": lam * params["x"]}, {}

    def reached(rule, eta):
        x = torch.tensor([1.0])
        for _ in range(200):
            x = x - eta * rule(grad_fn)({"x": x}, Explicit.batch(it))[0]["x"]
        return float(x.abs())

    it = Explicit()
    assert reached(stable_sam(rho=rho), 1.9) < 1e-6
    assert reached(sam(rho=rho), 1.9) > 1.0


def test_the_orthogonal_part():
    a, b = {"p": torch.tensor([3.0, 4.0]), "q": torch.tensor([5.0])}, {"p": torch.tensor([2.0, 0.0])}
    b["q"] = torch.tensor([0.0])
    assert oracles.flat(trees.orthogonal(a, b)).tolist() == [0.0, 4.0, 5.0]
    nothing = {k: torch.zeros_like(v) for k, v in b.items()}
    assert oracles.flat(trees.orthogonal(a, nothing)).tolist() == [3.0, 4.0, 5.0]
    half = {"p": torch.full((3000,), 1.01, dtype=torch.bfloat16)}
    assert trees.dot(half, half).dtype == torch.float32


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_an_ascent_of_several_steps(steps):
    it = Explicit()
    v = it.at
    for _ in range(steps):
        g = it.gradient(v)
        v = v + RHO / steps * g / g.norm()
    assert (v - it.at).norm() <= RHO * (1 + 1e-12)
    mine = it.ruled(n_step_sam(rho=RHO, steps=steps))
    close(mine, it.gradient(v))
    if steps == 1:
        close(mine, it.ruled(sam(rho=RHO)), rtol=1e-15)
    else:
        far(mine, it.ruled(sam(rho=RHO)), 1e-4)
        assert it.value(v) > it.value(it.at + RHO * it.gradient(it.at) / it.gradient(it.at).norm())


def test_radius_zero_is_the_plain_gradient():
    it = Explicit()
    plain = oracles.flat(it.grad_fn(it.params, it.batch())[0])
    for rule in (gsam(rho=0), wsam(rho=0), gnp(rho=0), stable_sam(rho=0), n_step_sam(rho=0)):
        assert torch.equal(it.ruled(rule), plain)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_the_family_is_homogeneous_in_the_gradients_scale(scale):
    """As a loss scale makes it, in float32."""
    it = Explicit()
    params = {k: v.float() for k, v in it.params.items()}
    batch = it.batch()._replace(x=it.x.float())

    def scaled(p, b):
        g, logs = it.grad_fn(p, b)
        return {k: scale * v for k, v in g.items()}, logs

    for rule in (gsam(rho=RHO, alpha=0.7), wsam(rho=RHO), gnp(rho=RHO), stable_sam(rho=RHO)):
        one = oracles.flat(rule(it.grad_fn)(params, batch)[0])
        other = oracles.flat(rule(scaled)(params, batch)[0])
        torch.testing.assert_close(other / scale, one, rtol=1e-3, atol=1e-6)
