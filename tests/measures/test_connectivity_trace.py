"""Connectivity trace against explicit Jacobians, its invariance, and its small-ρ limits."""

from __future__ import annotations

import oracles
import pytest
import torch
import zoo
from laws import gradient_is_that_of, one_batch_is_many, value_of, vmap_is_loop
from torch import nn
from torch.func import functional_call

from flattrain.core.functional import see
from flattrain.core.losses import cross_entropy, squared_error
from flattrain.core.probes import draw, stream
from flattrain.measures.average_sharpness import average_sharpness
from flattrain.measures.connectivity_trace import connectivity_trace
from flattrain.ranges import Refused


def explicit(net, x, params=None):
    params = params or {k: p.detach() for k, p in net.named_parameters()}
    return (oracles.parameter_jacobians(net, x, params) * oracles.flat(params)).square().sum((1, 2)).mean()


@pytest.mark.parametrize("kind", ["tanh", "relu"])
@pytest.mark.parametrize("bias", [True, False])
def test_exact_form_and_its_gradient_are_those_of_the_definition(kind, bias):
    net, (x, y) = oracles.small_net(kind, (3, 4, 3), bias=bias), oracles.data(n=5, inputs=3)
    gradient_is_that_of(lambda p: explicit(net, x, p), connectivity_trace(form="exact"), net, x, y)


def test_sketch_over_a_basis_is_the_definition():
    net, (x, y) = oracles.small_net(sizes=(3, 4, 3)), oracles.data(n=5, inputs=3)
    # √(nK) e_k: the mean of the quadratic forms is the trace, exactly.
    noise = {str(k): row.reshape(5, 3) for k, row in enumerate(15**0.5 * torch.eye(15))}
    gradient_is_that_of(lambda p: explicit(net, x, p), connectivity_trace(probes=15), net, x, y, noise=noise)


def test_sketch_is_unbiased_and_its_standard_error_is_right():
    net, (x, y) = oracles.small_net(), oracles.data()
    measure = connectivity_trace(probes=400)
    seen = see(net, cross_entropy, x, y)
    found = measure.reduce(measure.statistic(seen, draw(measure.draws(seen), stream(3), x.dtype)))
    assert 0 < found.standard_error < 0.1 * found.value
    assert abs(found.value - explicit(net, x)) < 4 * found.standard_error


def test_sketch_serves_other_layers():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    x, y = torch.randn(3, 1, 4, 4), torch.tensor([0, 1, 1])
    noise = {str(k): row.reshape(3, 2) for k, row in enumerate(6**0.5 * torch.eye(6))}
    found = value_of(connectivity_trace(probes=6), net, cross_entropy, x, y, noise=noise).mean().detach()
    torch.testing.assert_close(found, explicit(net, x), rtol=1e-10, atol=0)


def test_invariance_under_rescaling_units_of_a_relu_net():
    net, (x, y) = oracles.small_net("relu"), oracles.data()
    seen = see(net, cross_entropy, x, y)
    noise = draw(connectivity_trace(probes=2).draws(seen), stream(3), x.dtype)

    def values():
        sketch = value_of(connectivity_trace(probes=2), net, cross_entropy, x, y, noise=noise)
        return [
            float(sketch.detach()),
            float(value_of(connectivity_trace(form="exact"), net, cross_entropy, x, y)),
        ]

    before, plain = values(), oracles.parameter_jacobians(net, x).square().sum()
    with torch.no_grad():
        c = torch.tensor([0.2, 3.0, 1.0, 5.0, 0.5])
        net.hidden1.weight.mul_(c[:, None])
        net.hidden1.bias.mul_(c)
        net.head.weight.div_(c)
    assert values() == pytest.approx(before, rel=1e-11)
    assert abs(oracles.parameter_jacobians(net, x).square().sum() / plain - 1) > 0.05


def test_small_relative_noise_in_the_weights_moves_the_outputs_by_the_trace():
    net, (x, y) = oracles.small_net(), oracles.data()
    params = {k: p.detach() for k, p in net.named_parameters()}
    w, rho = oracles.flat(params), 1e-4
    moved = 0
    for k in range(len(w)):
        e = torch.zeros(len(w))
        e[k] = rho * w[k]
        change = functional_call(net, oracles.rebuild(w + e, params), (x,)) - net(x).detach()
        moved = moved + change.square().sum(1).mean() / rho**2
    found = value_of(connectivity_trace(form="exact"), net, cross_entropy, x, y).detach()
    torch.testing.assert_close(found, moved, rtol=1e-3, atol=0)


def test_at_interpolation_under_squared_error_it_is_the_adaptive_average_sharpness():
    net, (x, _) = oracles.small_net(), oracles.data()
    y = net(x).detach().clone()
    size, rho = sum(p.numel() for p in net.parameters()), 1e-4
    rows = size**0.5 * torch.eye(size)
    like = dict(net.named_parameters())
    noise = {f"{k}.{n}": p for k in range(size) for n, p in oracles.rebuild(rows[k], like).items()}
    sharp = value_of(average_sharpness(rho=rho, probes=size), net, squared_error, x, y, noise=noise)
    trace = value_of(connectivity_trace(form="exact"), net, squared_error, x, y)
    torch.testing.assert_close(sharp.detach(), rho**2 * trace.detach(), rtol=5e-3, atol=0)


def test_laws():
    net, (x, y) = oracles.small_net(), oracles.data()
    one_batch_is_many(connectivity_trace(form="exact"), net, x, y)
    vmap_is_loop(connectivity_trace(form="exact"), net, x, y)
    vmap_is_loop(connectivity_trace(probes=2), net, x, y)


def test_refusals():
    x, y = oracles.data()
    mixed = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 3))
    value_of(connectivity_trace(form="exact"), mixed, cross_entropy, x, y)
    mixed.register_parameter("shift", nn.Parameter(torch.zeros(3)))
    with pytest.raises(Refused, match="no structure is known for shift"):
        value_of(connectivity_trace(form="exact"), mixed, cross_entropy, x, y)
    value_of(connectivity_trace(), mixed, cross_entropy, x, y)
    coupled = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    with pytest.raises(Refused, match="1 ties the examples"):
        value_of(connectivity_trace(), coupled, cross_entropy, x, y)


@pytest.mark.parametrize("name", zoo.BUILD)
def test_exact_on_every_layer(name):
    net, x = zoo.build(name)
    y = zoo.targets(net, x, nn.CrossEntropyLoss())
    params = oracles.trainable(net)
    jacobian = torch.func.jacrev(lambda p: torch.func.functional_call(net, p, (x,)))(params)
    wanted = sum((j * params[k]).square().sum() for k, j in jacobian.items()) / len(x)
    mine = value_of(connectivity_trace(form="exact"), net, cross_entropy, x, y)
    torch.testing.assert_close(mine.detach(), wanted, rtol=1e-10, atol=0)
