"""The relatives of relative flatness against the dense Hessian, and the invariances that set them apart."""

from __future__ import annotations

import oracles
import pytest
import torch
from laws import one_batch_is_many, value_of, vmap_is_loop
from torch.nn import functional as F

from flattrain.core.losses import cross_entropy
from flattrain.measures.relative_flatness import relative_flatness
from flattrain.measures.relative_flatness_variants import (
    normalised_relative_flatness,
    published_fam,
    relative_flatness_max,
    simplified_relative_flatness,
)
from flattrain.ranges import Refused


def gradient(measure, net, x, y):
    live = {k: p.detach().clone().requires_grad_() for k, p in net.named_parameters()}
    value = value_of(measure, net, cross_entropy, x, y, live)
    grads = torch.autograd.grad(value, list(live.values()), materialize_grads=True)
    return oracles.flat(dict(zip(live, grads, strict=True)))


def dense_simplified(matrix, params, layer):
    start = 0
    for name, p in params.items():
        if name == f"{layer}.weight":
            h = matrix[start : start + p.numel(), start : start + p.numel()]
            return p.square().sum() * torch.trace(h)
        start += p.numel()
    raise KeyError(layer)


def dense_max(matrix, params, layer):
    start = 0
    for name, p in params.items():
        if name == f"{layer}.weight":
            h = matrix[start : start + p.numel(), start : start + p.numel()].reshape(*p.shape, *p.shape)
            return sum(p[s].square().sum() * torch.linalg.eigvalsh(h[s, :, s, :])[-1] for s in range(len(p)))
        start += p.numel()
    raise KeyError(layer)


DENSE = {
    "simplified": (simplified_relative_flatness, dense_simplified),
    "max": (relative_flatness_max, dense_max),
}


@pytest.mark.parametrize("layer", ["hidden1", "head"])
@pytest.mark.parametrize("which", DENSE)
def test_value_and_gradient_are_those_of_the_definition(which, layer):
    net, (x, y) = oracles.small_net(), oracles.data()
    make, definition = DENSE[which]
    params = {k: p.detach() for k, p in net.named_parameters()}
    h = oracles.full_hessian(net, F.cross_entropy, x, y)
    measure = make(layer=layer)
    mine = value_of(measure, net, cross_entropy, x, y)
    torch.testing.assert_close(mine.detach(), definition(h, params, layer), rtol=1e-10, atol=0)
    wanted = oracles.gradient_of(lambda m, p: definition(m, p, layer), net, F.cross_entropy, x, y)
    torch.testing.assert_close(gradient(measure, net, x, y), wanted, rtol=1e-9, atol=1e-10)


def scaled(net, x):
    """The net with features of unit standard deviation: hidden units divided, head columns multiplied."""
    with torch.no_grad():
        sigma = net.act1(net.hidden1(x)).std(0, correction=0)
        net.hidden1.weight /= sigma[:, None]
        net.hidden1.bias /= sigma
        net.head.weight *= sigma
    return net


def test_normalised_is_kappa_of_the_net_with_unit_features():
    net, (x, y) = oracles.small_net("relu"), oracles.data()
    mine = value_of(normalised_relative_flatness(), net, cross_entropy, x, y)
    wanted = value_of(relative_flatness(), scaled(net, x), cross_entropy, x, y)
    torch.testing.assert_close(mine, wanted, rtol=1e-10, atol=0)


def test_normalised_does_not_see_the_scale_of_neurons_and_kappa_does():
    net, (x, y) = oracles.small_net("relu", (4, 6, 3)), oracles.data()
    with torch.no_grad():
        net.hidden1.bias[0] = -100.0  # a dead unit
    found = []
    for _ in range(2):
        found.append(
            [
                value_of(m, net, cross_entropy, x, y).detach()
                for m in (normalised_relative_flatness(), relative_flatness())
            ]
        )
        with torch.no_grad():
            d = torch.linspace(0.2, 5, 6)
            net.hidden1.weight *= d[:, None]
            net.hidden1.bias *= d
            net.head.weight /= d
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-8, atol=0)
    assert abs(found[0][1] / found[1][1] - 1) > 0.05


@pytest.mark.parametrize("layer", ["hidden1", "head"])
def test_gradient_of_the_normalised_variant_by_differences(layer):
    net, (x, y) = oracles.small_net(), oracles.data()
    measure = normalised_relative_flatness(layer=layer)
    mine = gradient(measure, net, x, y)
    at = torch.nn.utils.parameters_to_vector(net.parameters()).detach().clone()

    def value(vector):
        torch.nn.utils.vector_to_parameters(vector, net.parameters())
        return value_of(measure, net, cross_entropy, x, y).detach()

    torch.testing.assert_close(mine, oracles.finite_difference(value, at, 1e-3), rtol=1e-6, atol=1e-7)


def test_kappa_is_below_its_surrogate_at_a_head():
    net, (x, y) = oracles.small_net(), oracles.data()
    kappa = value_of(relative_flatness(), net, cross_entropy, x, y)
    assert kappa < value_of(simplified_relative_flatness(), net, cross_entropy, x, y)


def test_the_published_quantity_reads_wrong_blocks_and_moves_the_head_alone():
    net, (x, y) = oracles.small_net(sizes=(4, 5, 3)), oracles.data()
    h = oracles.block(net, oracles.full_hessian(net, F.cross_entropy, x, y), "head.weight")
    h = h.reshape(3, 5, 3, 5)
    w = net.head.weight.detach()
    wanted = sum((w[i] @ w[j]) * sum(h[a, j, i, a] for a in range(3)) for i in range(3) for j in range(3)) / 5
    mine = value_of(published_fam(), net, cross_entropy, x, y)
    torch.testing.assert_close(mine.detach(), wanted, rtol=1e-10, atol=0)
    g = torch.autograd.grad(mine, list(net.parameters()), materialize_grads=True)
    moved = [bool(v.abs().max() > 0) for v in g]
    assert moved == [name == "head.weight" for name, _ in net.named_parameters()]
    wide = oracles.small_net(sizes=(4, 2, 3))
    with pytest.raises(Refused, match="no more rows than columns"):
        value_of(published_fam(), wide, cross_entropy, x, y)


def test_laws():
    net, (x, y) = oracles.small_net(), oracles.data(n=17)
    for make in (normalised_relative_flatness, relative_flatness_max, simplified_relative_flatness):
        for layer in ("head", "hidden1"):
            one_batch_is_many(make(layer=layer), net, x, y)
            vmap_is_loop(make(layer=layer), net, x, y)
