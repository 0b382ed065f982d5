"""Each rule against its formula written out by hand, and its identities."""

from __future__ import annotations

import oracles
import pytest
import torch
from laws import rule_is_identity
from torch.nn import functional as F

from flattrain.core.losses import cross_entropy, squared_error
from flattrain.ranges import Refused
from flattrain.rules.noise import antithetic_noise, label_noise, weight_noise
from flattrain.rules.plain import plain
from flattrain.rules.sam import m_sam, sam
from flattrain.training.objective import Penalty, build
from flattrain.types import Batch, Moment


def setting():
    net, (x, y) = oracles.small_net(), oracles.data()
    params = {k: p.detach() for k, p in net.named_parameters()}
    return net, build(net, cross_entropy, []).gradient(), params, Batch(x, y)


def gradient_at(net, vector, x, y, loss=F.cross_entropy):
    value, _ = oracles.loss_of_vector(net, loss, x, y)
    return torch.func.grad(value)(vector)


def test_sam_is_its_formula():
    net, grad_fn, params, batch = setting()
    at = oracles.flat(params)
    g = gradient_at(net, at, batch.x, batch.y)
    wanted = gradient_at(net, at + 0.3 * g / g.norm(), batch.x, batch.y)
    mine, logs = sam(rho=0.3)(grad_fn)(params, batch)
    torch.testing.assert_close(oracles.flat(mine), wanted, rtol=1e-12, atol=1e-14)
    assert (wanted - g).norm() > 0.01
    assert logs["ascended/loss"] > logs["loss"]


def test_m_sam_averages_over_groups():
    net, grad_fn, params, batch = setting()
    at = oracles.flat(params)
    for m in (1, 3, 12):
        wanted = 0
        for k in range(0, 12, m):
            x, y = batch.x[k : k + m], batch.y[k : k + m]
            g = gradient_at(net, at, x, y)
            wanted = wanted + gradient_at(net, at + 0.3 * g / g.norm(), x, y) * m / 12
        mine, _ = m_sam(rho=0.3, m=m)(grad_fn)(params, batch)
        torch.testing.assert_close(oracles.flat(mine), wanted, rtol=1e-11, atol=1e-13)
        if m == 1:
            exact = m_sam(rho=0.3, per_example=build(net, cross_entropy, []).per_example_sam)
            twice, logs = exact(grad_fn)(params, batch)
            torch.testing.assert_close(oracles.flat(twice), wanted, rtol=1e-11, atol=1e-13)
            assert logs["ascended/loss"] > logs["loss"]
    whole, _ = sam(rho=0.3)(grad_fn)(params, batch)
    torch.testing.assert_close(mine, whole)
    with pytest.raises(Refused, match="not a multiple of m = 5"):
        m_sam(m=5)(grad_fn)(params, batch)


def test_noise_rules_are_their_formulas():
    net = oracles.small_net(sizes=(4, 5, 1))
    x, _ = oracles.data()
    y = torch.randn(len(x))
    params = {k: p.detach() for k, p in net.named_parameters()}
    grad_fn, at = build(net, squared_error, []).gradient(), oracles.flat(params)
    signs = torch.where(torch.arange(len(y)) % 2 == 0, 1.0, -1.0)
    mine, _ = label_noise(delta=0.5)(grad_fn)(params, Batch(x, y, {"rule.labels": signs}))
    wanted = gradient_at(net, at, x, y + 0.5 * signs, squared_error.mean)
    torch.testing.assert_close(oracles.flat(mine), wanted, rtol=1e-12, atol=1e-14)
    noise = {f"0.{k}": torch.randn_like(v) for k, v in params.items()}
    mine, _ = weight_noise(scale=0.2)(grad_fn)(params, Batch(x, y, noise))
    wanted = gradient_at(net, at + 0.2 * oracles.flat(noise), x, y, squared_error.mean)
    torch.testing.assert_close(oracles.flat(mine), wanted, rtol=1e-12, atol=1e-14)


def test_smoothing_over_copies_and_pairs():
    net, grad_fn, params, batch = setting()
    at = oracles.flat(params)
    noise = {f"{j}.{k}": torch.randn_like(v) for j in range(3) for k, v in params.items()}
    xi = [oracles.flat({k: noise[f"{j}.{k}"] for k in params}) for j in range(3)]

    def g(vector):
        return gradient_at(net, vector, batch.x, batch.y)

    mine, logs = weight_noise(scale=0.2, copies=3)(grad_fn)(params, batch._replace(noise=noise))
    wanted = sum(g(at + 0.2 * e) for e in xi) / 3
    torch.testing.assert_close(oracles.flat(mine), wanted, rtol=1e-12, atol=1e-14)
    losses = [oracles.loss_of_vector(net, F.cross_entropy, batch.x, batch.y)[0](at + 0.2 * e) for e in xi]
    torch.testing.assert_close(logs["loss"], sum(losses) / 3)
    mine, _ = antithetic_noise(scale=0.2, pairs=2)(grad_fn)(params, batch._replace(noise=noise))
    wanted = sum(g(at + sign * 0.2 * e) for e in xi[:2] for sign in (1, -1)) / 4
    torch.testing.assert_close(oracles.flat(mine), wanted, rtol=1e-12, atol=1e-14)
    assert (wanted - g(at)).norm() > 1e-3


def test_pairs_have_no_odd_term():
    """The step that noise of scale s adds: O(s) for a copy, O(s²) for a pair."""
    _, grad_fn, params, batch = setting()
    plain = oracles.flat(grad_fn(params, batch)[0])
    batch = batch._replace(noise={f"0.{k}": torch.randn_like(v) for k, v in params.items()})

    def added(make, scale):
        return float((oracles.flat(make(scale=scale)(grad_fn)(params, batch)[0]) - plain).norm())

    assert added(weight_noise, 2e-3) / added(weight_noise, 1e-3) == pytest.approx(2, rel=0.02)
    assert added(antithetic_noise, 2e-3) / added(antithetic_noise, 1e-3) == pytest.approx(4, rel=0.02)


def test_a_schedule_scales_noise():
    net = oracles.small_net(sizes=(4, 5, 1))
    x, _ = oracles.data()
    params = {k: p.detach() for k, p in net.named_parameters()}
    noise = {f"0.{k}": torch.randn_like(v) for k, v in params.items()} | {"rule.labels": torch.ones(len(x))}
    grad_fn = build(net, squared_error, []).gradient()
    batch = Batch(x, torch.zeros(len(x)), noise)
    for make in (lambda s: weight_noise(scale=s), lambda s: label_noise(delta=s)):
        half, _ = make(0.4)(grad_fn)(params, batch._replace(moment=Moment(0, 0.5)))
        wanted, _ = make(0.2)(grad_fn)(params, batch)
        torch.testing.assert_close(oracles.flat(half), oracles.flat(wanted), rtol=1e-14, atol=1e-16)
        assert (oracles.flat(half) - oracles.flat(grad_fn(params, batch)[0])).norm() > 1e-3


def test_strength_zero_is_the_plain_gradient():
    _, grad_fn, params, batch = setting()
    noise = {f"0.{k}": torch.randn_like(v) for k, v in params.items()}
    rule_is_identity(plain(), grad_fn, params, batch)
    rule_is_identity(sam(rho=0.0), grad_fn, params, batch)
    rule_is_identity(weight_noise(scale=0.0), grad_fn, params, batch._replace(noise=noise))
    rule_is_identity(antithetic_noise(scale=0.0), grad_fn, params, batch._replace(noise=noise))


def test_sam_on_a_quadratic_settles_where_theory_says():
    """½ xᵀAx: ‖x‖ → ηρλ₁/(2 − ηλ₁) along the top eigenvector (Wen et al. 2022, Thm 4.8)."""
    eigenvalues, eta, rho = torch.tensor([1.0, 0.4]), 0.3, 0.05

    def grad_fn(params, batch):
        return {"x": eigenvalues * params["x"]}, {}

    params = {"x": torch.tensor([1.0, 1.0])}
    step = sam(rho=rho)(grad_fn)
    for _ in range(3000):
        g, _ = step(params, Batch(None, None))
        params = {"x": params["x"] - eta * g["x"]}
    assert float(params["x"].norm()) == pytest.approx(eta * rho / (2 - eta), rel=1e-6)
    assert abs(float(params["x"][1])) < 1e-8


def test_at_an_exact_minimum_sam_stays():
    params = {"x": torch.zeros(3)}
    g, _ = sam(rho=0.1)(lambda p, b: ({"x": 2 * p["x"]}, {}))(params, Batch(None, None))
    assert torch.equal(g["x"], torch.zeros(3))


def test_the_ascent_sees_the_penalty():
    from flattrain.measures.norms import weight_norm

    net, _, params, batch = setting()
    objective = build(net, cross_entropy, [Penalty(weight_norm(), 0.5)])
    at = oracles.flat(params)
    g = gradient_at(net, at, batch.x, batch.y) + at
    up = at + 0.3 * g / g.norm()
    wanted = gradient_at(net, up, batch.x, batch.y) + up
    mine, _ = sam(rho=0.3)(objective.gradient())(params, batch)
    torch.testing.assert_close(oracles.flat(mine), wanted, rtol=1e-12, atol=1e-13)


def test_refusals():
    with pytest.raises(Refused, match="rho must be a number >= 0, got -1"):
        sam(rho=-1)
    _, grad_fn, params, batch = setting()
    with pytest.raises(Refused, match="class labels"):
        label_noise()(grad_fn)(params, batch)
