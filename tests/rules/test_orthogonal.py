"""The two orthogonal-component rules by hand, and what they do along a valley of minima."""

from __future__ import annotations

import math

import oracles
import pytest
import torch
from laws import drawn, rule_is_identity, rule_over_seeds_is_a_loop
from torch.func import vmap
from torch.nn import functional as F

from flattrain.core.losses import cross_entropy
from flattrain.rules.orthogonal import randomly_smoothed, sharpness_aware_perturbation
from flattrain.training.objective import build
from flattrain.types import Batch, Moment


def setting():
    net, (x, y) = oracles.small_net(), oracles.data()
    params = {k: p.detach() for k, p in net.named_parameters()}

    def slope(theta, rows=slice(None)):
        value, _ = oracles.loss_of_vector(net, F.cross_entropy, x[rows], y[rows])
        return torch.func.grad(value)(theta)

    return build(net, cross_entropy, []).gradient(), params, Batch(x, y), slope, oracles.flat(params)


def across(v, g):
    return v - (v @ g) / (g @ g) * g


def test_random_smoothing_by_hand():
    grad_fn, params, batch, slope, at = setting()
    rule = randomly_smoothed(rho=0.5)
    there = drawn(rule, params, batch, 0)
    u = torch.cat([there.noise[f"0.{n}"].reshape(-1) for n in params])
    g = slope(at)
    v = across(slope(at + 0.5 * u / u.norm()), g)
    mine, logs = rule(grad_fn)(params, there)
    torch.testing.assert_close(oracles.flat(mine), g + v, rtol=1e-10, atol=1e-13)
    assert v.norm() > 0.01 and abs(float(v @ g)) < 1e-12
    assert logs["ascended/loss"] != logs["loss"]


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_sharpness_aware_perturbation_by_hand(sign):
    grad_fn, params, batch, slope, at = setting()
    order = torch.arange(12.0).roll(5)  # the largest is at 4
    there = batch._replace(noise={"rule.example": order, "rule.sign": torch.tensor(sign)})
    g, its = slope(at), slope(at, slice(4, 5))
    v = across(slope(at + sign * 0.5 * its / its.norm(), slice(4, 5)), g)
    mine, _ = sharpness_aware_perturbation(rho=0.5)(grad_fn)(params, there)
    torch.testing.assert_close(oracles.flat(mine), g + v, rtol=1e-10, atol=1e-13)
    assert v.norm() > 0.01


def test_every_example_is_as_likely():
    _, params, batch, _, _ = setting()
    rule = sharpness_aware_perturbation()
    picks = [int(drawn(rule, params, batch, k).noise["rule.example"].argmax()) for k in range(6000)]
    counts = torch.bincount(torch.tensor(picks), minlength=12)
    error = math.sqrt(6000 * (1 / 12) * (11 / 12))
    assert (counts - 500).abs().max() < 4 * error


@pytest.mark.parametrize("rule", [randomly_smoothed, sharpness_aware_perturbation])
def test_only_where_the_gradient_is_short(rule):
    grad_fn, params, batch, slope, at = setting()
    size = float(slope(at).norm())
    there = drawn(rule(), params, batch, 0)
    rule_is_identity(rule(rho=0.5, below=0.99 * size), grad_fn, params, there)
    near, _ = rule(rho=0.5, below=1.01 * size)(grad_fn)(params, there)
    free, _ = rule(rho=0.5)(grad_fn)(params, there)
    assert torch.equal(oracles.flat(near), oracles.flat(free))
    rule_is_identity(rule(rho=0.0), grad_fn, params, batch)
    rule_is_identity(rule(), grad_fn, params, there._replace(moment=Moment(0, 0.0)))


@pytest.mark.parametrize("rule", [randomly_smoothed(rho=0.5), sharpness_aware_perturbation(rho=0.5)])
def test_seeds_stack(rule):
    grad_fn, params, batch, _, _ = setting()
    rule_over_seeds_is_a_loop(rule, grad_fn, params, batch)


def valley(params, batch):
    """f_i = e^{i z} a_i² / 2, i = 1, −2 in two coordinates of a: minima a = 0, along which z moves Tr H.

    x holds the rates i; y which coordinate an example sees.
    """
    z, seen = params["z"], batch.y @ params["a"]
    scale, n = torch.exp(batch.x * z), len(batch.x)
    slope = {"z": (batch.x * scale * seen**2 / 2).sum() / n, "a": (scale * seen) @ batch.y / n}
    return slope, {"loss": (scale * seen**2).sum() / 2 / n}


@pytest.mark.parametrize("dim", [3, 30, 300])
def test_along_a_valley_both_follow_the_trace_and_the_examples_do_so_dim_times_faster(dim):
    """E v_z = (ρ²/2D) ∂_z Tr H for random directions, (ρ²/2) ∂_z Tr H for those of the examples.

    The first over 2e4 draws, within 4 standard errors (and a share ρ of higher orders); the second over
    every example and sign, exact up to higher orders.
    """
    z, rho, draws = 0.3, 0.02, 20_000
    batch = Batch(torch.tensor([1.0, -2.0]), torch.eye(2, dim - 1))
    trace_slope = (math.exp(z) - 2 * math.exp(-2 * z)) / 2
    params = {"z": torch.tensor(z), "a": torch.zeros(dim - 1)}
    rule = randomly_smoothed(rho=rho)
    generator = torch.Generator().manual_seed(0)
    noise = {
        k: torch.randn(draws, *w.shape, generator=generator) for k, w in rule.draws(params, batch).items()
    }
    v = vmap(lambda noise: rule(valley)(params, batch._replace(noise=noise))[0]["z"])(noise)
    wanted, error = rho**2 / (2 * dim) * trace_slope, float(v.std()) / math.sqrt(draws)
    assert abs(float(v.mean()) - wanted) < 4 * error + rho * abs(wanted)
    assert abs(wanted) > 10 * error

    near = params | {"a": torch.full((dim - 1,), 1e-9)}  # where the examples' gradients have directions
    rule, steps = sharpness_aware_perturbation(rho=rho), []
    for example in torch.eye(2):
        for sign in (1.0, -1.0):
            noise = {"rule.example": example, "rule.sign": torch.tensor(sign)}
            steps.append(rule(valley)(near, batch._replace(noise=noise))[0]["z"])
    # one of n = 2 examples is a whole batch of one: Tr H is the mean of their traces
    assert float(torch.stack(steps).mean()) == pytest.approx(rho**2 / 2 * trace_slope, rel=1e-3)
