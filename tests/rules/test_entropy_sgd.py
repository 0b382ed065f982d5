"""Entropy-SGD's inner walk by hand on a network, and in closed form on a quadratic."""

from __future__ import annotations

import math

import oracles
import pytest
import torch
from laws import drawn, rule_is_identity, rule_over_seeds_is_a_loop
from torch.nn import functional as F

from flattrain.core.losses import cross_entropy
from flattrain.rules.entropy_sgd import entropy_sgd
from flattrain.training.objective import build
from flattrain.types import Batch, Moment


def setting():
    net, (x, y) = oracles.small_net(), oracles.data()
    params = {k: p.detach() for k, p in net.named_parameters()}
    value, at = oracles.loss_of_vector(net, F.cross_entropy, x, y)
    return build(net, cross_entropy, []).gradient(), params, Batch(x, y), torch.func.grad(value), at


@pytest.mark.parametrize("step", [0, 7])
def test_the_walk_by_hand(step):
    grad_fn, params, batch, slope, w = setting()
    rule = entropy_sgd(langevin=5, inner_lr=0.2, gamma0=0.3, gamma1=0.1, noise=0.05)
    there = drawn(rule, params, batch, 0)._replace(moment=Moment(step))
    gamma = 0.3 * 1.1**step
    walk, mean = w.clone(), w.clone()
    for k in range(5):
        xi = torch.cat([there.noise[f"{k}.{n}"].reshape(-1) for n in params])
        walk = walk - 0.2 * (slope(walk) - gamma * (w - walk)) + 0.05 * math.sqrt(0.4) * xi
        mean = 0.75 * mean + 0.25 * walk
    mine, logs = rule(grad_fn)(params, there)
    torch.testing.assert_close(oracles.flat(mine), w - mean, rtol=1e-9, atol=1e-13)
    torch.testing.assert_close(logs["loss"], grad_fn(params, batch)[1]["loss"])
    assert (w - mean).norm() > 0.05
    # a share of the schedule mixes with the plain gradient, and none is the plain gradient
    half, _ = rule(grad_fn)(params, there._replace(moment=Moment(step, 0.5)))
    torch.testing.assert_close(oracles.flat(half), (w - mean + slope(w)) / 2, rtol=1e-9, atol=1e-13)
    rule_is_identity(rule, grad_fn, params, batch._replace(moment=Moment(step, 0.0)))


def test_on_a_quadratic_it_is_a_filtered_gradient():
    """Without noise each eigenvalue λ has w'_k − w = −λw (1 − m^k)/(λ + γ), m = 1 − η'(λ + γ)."""
    curvature, gamma, lr, steps = torch.tensor([5.0, 1.0, 0.1]), 0.5, 0.1, 30
    w = torch.tensor([1.0, -2.0, 3.0])
    rule = entropy_sgd(langevin=steps, inner_lr=lr, gamma0=gamma, noise=0.0)
    grad_fn = lambda p, b: ({"x": curvature * p["x"]}, {})  # noqa: E731
    batch = drawn(rule, {"x": w}, Batch(None, None), 0)
    mine, _ = rule(grad_fn)({"x": w}, batch)
    decay = 1 - lr * (curvature + gamma)
    k = torch.arange(1, steps + 1).unsqueeze(1)
    away = curvature * w / (curvature + gamma) * (1 - decay**k)
    weights = 0.25 * 0.75 ** (steps - k)
    torch.testing.assert_close(mine["x"], (weights * away).sum(0), rtol=1e-12, atol=0)
    # sharp directions saturate: the ratio of the entries over w is far below that of the curvatures
    assert float(mine["x"][0] / w[0]) / float(mine["x"][2] / w[2]) < 15 < 50


def test_one_step_without_noise_is_a_short_gradient_step():
    grad_fn, params, batch, slope, w = setting()
    rule = entropy_sgd(langevin=1, inner_lr=0.2, noise=0.0)
    mine, _ = rule(grad_fn)(params, drawn(rule, params, batch, 0))
    torch.testing.assert_close(oracles.flat(mine), 0.25 * 0.2 * slope(w), rtol=1e-10, atol=1e-15)


def test_a_step_costs_as_many_gradients_as_the_walk_is_long():
    grad_fn, params, batch, _, _ = setting()
    calls = []

    def counted(params, batch):
        calls.append(1)
        return grad_fn(params, batch)

    rule = entropy_sgd(langevin=6)
    rule(counted)(params, drawn(rule, params, batch, 0))
    assert len(calls) == 6


def test_seeds_stack():
    grad_fn, params, batch, _, _ = setting()
    rule_over_seeds_is_a_loop(entropy_sgd(langevin=4, gamma1=0.5, noise=0.1), grad_fn, params, batch, lr=1.0)
