"""Worst-case sharpness against brute force over the ball, closed forms, and its small-ρ limit."""

from __future__ import annotations

import itertools
import math

import oracles
import pytest
import torch
from laws import one_batch_is_many, value_of, vmap_is_loop
from torch import nn
from torch.nn import functional as F

from flattrain.core.losses import cross_entropy, recognise
from flattrain.measures.worst_sharpness import checkpoints, worst_sharpness
from flattrain.ranges import Refused

LINEAR = recognise(lambda z, y: z.sum(-1).mean())


def gradient(net, x, y):
    value, at = oracles.loss_of_vector(net, F.cross_entropy, x, y)
    return torch.func.grad(value)(at), at


def worst(net, x, y, criterion=cross_entropy, **settings):
    return float(value_of(worst_sharpness(**settings), net, criterion, x, y).detach())


@pytest.mark.parametrize("scale", ["plain", "adaptive"])
def test_small_rho_gives_the_dual_norm_of_the_scaled_gradient(scale):
    net, (x, y) = oracles.small_net(), oracles.data()
    g, w = gradient(net, x, y)
    d = w.abs() if scale == "adaptive" else torch.ones_like(w)
    rho = 1e-5
    assert worst(net, x, y, rho=rho, scale=scale) == pytest.approx(float(rho * (d * g).norm()), rel=1e-4)
    found = worst(net, x, y, rho=rho, scale=scale, norm="linf")
    assert found == pytest.approx(float(rho * (d * g).abs().sum()), rel=1e-4)


def test_a_linear_loss_has_its_maximum_on_the_border():
    net, (x, y) = nn.Linear(4, 1, bias=False), oracles.data()
    g, w = x.mean(0), net.weight.detach()[0]
    for scale, d in (("plain", torch.ones(4)), ("adaptive", w.abs())):
        found = worst(net, x, y, LINEAR, rho=0.7, scale=scale)
        assert found == pytest.approx(0.7 * float((d * g).norm()), rel=1e-12)
        found = worst(net, x, y, LINEAR, rho=0.7, scale=scale, norm="linf")
        assert found == pytest.approx(0.7 * float((d * g).abs().sum()), rel=1e-12)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("rho", [0.3, 1.5])
def test_two_parameters_by_brute_force(norm, rho):
    """Logits (a x, b x) on points of both classes: every (a, b) of the ball is tried."""
    net = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[0.4], [-0.3]]))
    x = torch.tensor([[1.0], [-0.5], [2.0], [0.3], [-1.0]])
    y = torch.tensor([0, 1, 0, 1, 1])
    if norm == "l2":
        angle = torch.linspace(0, 2 * math.pi, 2001)
        ball = torch.cat([r * torch.stack([angle.cos(), angle.sin()], 1) for r in torch.linspace(0, rho, 21)])
    else:
        side = torch.linspace(-rho, rho, 201)
        ball = torch.cartesian_prod(side, side)
    at = net.weight.detach()[:, 0] + ball  # every loss is convex here, so the maximum is on the border
    logits = at[:, None, :] * x[None]
    losses = F.cross_entropy(logits.flatten(0, 1), y.repeat(len(ball)), reduction="none").reshape(-1, len(x))
    wanted = float(losses.mean(1).max() - F.cross_entropy(net(x), y).detach())
    assert worst(net, x, y, rho=rho, norm=norm, scale="plain") == pytest.approx(wanted, rel=1e-4)


def test_more_steps_find_no_less_and_never_below_zero():
    net, (x, y) = oracles.small_net(), oracles.data()
    found = [worst(net, x, y, rho=1.0, steps=k) for k in (1, 5, 20, 60)]
    assert 0 <= found[0] < found[1] <= found[2] * (1 + 1e-9) and found[3] >= 0.999 * found[2]
    head = nn.Linear(4, 3)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.zero_()
    assert worst(head, torch.zeros(3, 4), torch.tensor([0, 1, 2]), rho=1.0) == 0  # a gradient of 0


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_gradient_is_that_of_the_maximum(norm):
    net, (x, y) = oracles.small_net(sizes=(3, 3), bias=False), oracles.data(inputs=3)
    live = {k: p.detach().requires_grad_() for k, p in net.named_parameters()}
    measure = worst_sharpness(rho=0.3, norm=norm, steps=50)
    (mine,) = torch.autograd.grad(value_of(measure, net, cross_entropy, x, y, live), list(live.values()))

    def maximum(vector):  # by differences of the maximum itself, found anew each time
        return value_of(measure, net, cross_entropy, x, y, {"head.weight": vector.reshape(3, 3)})

    wanted = oracles.finite_difference(maximum, net.head.weight.detach().reshape(-1), 1e-3)
    torch.testing.assert_close(mine.reshape(-1), wanted, rtol=1e-5, atol=1e-6)
    # The linear loss has the maximum ρ‖|w| ∘ x̄‖.
    one = nn.Linear(4, 1, bias=False)
    x, y = oracles.data()
    value = value_of(worst_sharpness(rho=0.7), one, LINEAR, x, y)
    (mine,) = torch.autograd.grad(value, list(one.parameters()))
    w, mean = one.weight.detach()[0], x.mean(0)
    torch.testing.assert_close(mine[0], 0.7 * w * mean**2 / (w * mean).norm(), rtol=1e-10, atol=1e-14)


def test_groups_are_maximised_apart():
    net, (x, y) = oracles.small_net(), oracles.data(n=11)
    found = worst(net, x, y, rho=0.5, group=4)
    parts = [(x[:4], y[:4]), (x[4:8], y[4:8]), (x[8:], y[8:])]
    wanted = sum(worst(net, *part, rho=0.5) * len(part[0]) / 11 for part in parts)
    assert found == pytest.approx(wanted, rel=1e-12)
    assert found > worst(net, x, y, rho=0.5)


def test_invariance_under_rescaling_units_of_a_relu_net():
    net, (x, y) = oracles.small_net("relu"), oracles.data()
    settings = [{"norm": norm} for norm in ("l2", "linf")]
    before = [worst(net, x, y, **s) for s in settings]
    with torch.no_grad():
        net.hidden1.weight.mul_(4)
        net.hidden1.bias.mul_(4)
        net.head.weight.div_(4)
    assert [worst(net, x, y, **s) for s in settings] == pytest.approx(before, rel=1e-9)
    normal = worst(net, x, y, logits="normalised")
    with torch.no_grad():
        net.head.weight.mul_(4)
        net.head.bias.mul_(4)
    assert worst(net, x, y, logits="normalised") == pytest.approx(normal, rel=1e-9)


def by_rule(net, x, y, rho, norm, steps, looks, halve=None):
    """The ascent on one flat vector, as the docstring tells it; `halve` takes the decisions in its place."""
    value, at = oracles.loss_of_vector(net, F.cross_entropy, x, y)

    def project(v):
        return v.clamp(-rho, rho) if norm == "linf" else v * min(1.0, rho / max(float(v.norm()), 1e-300))

    def slope(v):
        return at.abs() * torch.func.grad(value)(at + at.abs() * v)

    def height(v):
        return float(value(at + at.abs() * v))

    path = [torch.zeros_like(at)]
    v, before, size = path[0], path[0], 2 * rho
    rises, halved, top = [], False, height(v)
    for k in range(1, steps + 1):
        g = slope(v)
        u = project(v + size * (g.sign() if norm == "linf" else g / g.norm()))
        v, before = (u if k == 1 else project(v + 0.75 * (u - v) + 0.25 * (v - before))), v
        path.append(v)
        rises.append(height(v) > height(before))
        if k in looks:
            best = max(path, key=height)
            halved = sum(rises) < 0.75 * len(rises) or (not halved and height(best) == top)
            if halve is not None:
                halved = halve
            if halved:
                size, v, before = size / 2, best, best
            rises, top = [], height(best)
    return max(height(v) for v in path) - height(path[0])


def test_the_ascent_takes_the_stated_steps_and_decisions():
    net, (x, y) = oracles.small_net(), oracles.data()
    never = always = 0
    for norm, rho in itertools.product(("l2", "linf"), (0.5, 2.0)):
        for steps, looks in ((6, {2, 3, 4, 5, 6}), (20, {5, 9, 12, 14, 16, 18, 19, 20})):
            wanted, whatever, not_once = (
                by_rule(net, x, y, rho, norm, steps, looks, halve) for halve in (None, True, False)
            )
            assert worst(net, x, y, rho=rho, norm=norm, steps=steps) == pytest.approx(wanted, rel=1e-9)
            always += wanted != pytest.approx(whatever, rel=1e-9)
            never += wanted != pytest.approx(not_once, rel=1e-9)
    assert always >= 3 and never >= 3  # the progress decides


def test_the_progress_is_looked_at_where_auto_pgd_does():
    assert sorted(checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert sorted(checkpoints(20)) == [5, 9, 12, 14, 16, 18, 19, 20]


def test_laws():
    net, (x, y) = oracles.small_net(), oracles.data(n=20)
    one_batch_is_many(worst_sharpness(group=5), net, x, y)
    for norm in ("l2", "linf"):
        vmap_is_loop(worst_sharpness(group=8, norm=norm, steps=5), net, x, y)


def test_refusals():
    with pytest.raises(Refused, match="rho must be a number > 0"):
        worst_sharpness(rho=0)
    net = nn.Linear(4, 3)
    from flattrain.core.functional import see

    x, y = oracles.data()
    seen = see(net, cross_entropy, [x], y, forward=lambda m, x: m(x[0]))
    with pytest.raises(Refused, match="give the inputs as one tensor"):
        worst_sharpness().statistic(seen, {})
