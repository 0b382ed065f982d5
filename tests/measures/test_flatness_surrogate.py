"""The surrogate of relative flatness by hand, where it is the simplified κ̂, and at most what it can be."""

from __future__ import annotations

import oracles
import pytest
import torch
from laws import gradient_is_that_of, one_batch_is_many, value_of, vmap_is_loop
from torch import nn
from torch.func import functional_call

from flattrain.core.losses import cross_entropy, squared_error
from flattrain.measures.confidence import gini_confidence
from flattrain.measures.flatness_surrogate import flatness_surrogate
from flattrain.measures.relative_flatness import relative_flatness
from flattrain.measures.relative_flatness_variants import simplified_relative_flatness
from flattrain.ranges import Refused


def probabilities(net, x, params, temperature):
    z = (functional_call(net, params, (x,)) / temperature).exp()
    return z / z.sum(1, keepdim=True)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.3])
def test_it_is_its_formula_and_so_is_its_gradient(temperature):
    net, (x, y) = oracles.small_net(), oracles.data()

    def by_hand(params):
        p = probabilities(net, x, params, temperature)
        return (params["head.weight"] ** 2).sum() * sum(1 - (row * row).sum() for row in p) / len(x)

    gradient_is_that_of(by_hand, flatness_surrogate(temperature=temperature), net, x, y)


def test_on_features_of_length_one_it_is_the_simplified_relative_flatness_and_bounds_the_exact():
    net = nn.Sequential()
    net.add_module("head", nn.Linear(4, 3))
    x, y = oracles.data()
    with torch.no_grad():
        net.head.weight.copy_(torch.randn(3, 4))
    unit = x / x.norm(dim=1, keepdim=True)
    surrogate = float(value_of(flatness_surrogate(temperature=1.0), net, cross_entropy, unit, y))
    simplified = float(value_of(simplified_relative_flatness(), net, cross_entropy, unit, y))
    assert surrogate == pytest.approx(simplified, rel=1e-12)
    assert surrogate > float(value_of(relative_flatness(), net, cross_entropy, unit, y)) > 0
    longer = float(value_of(simplified_relative_flatness(), net, cross_entropy, x, y))
    assert longer != pytest.approx(
        float(value_of(flatness_surrogate(temperature=1.0), net, cross_entropy, x, y)), rel=0.01
    )


def test_it_is_largest_where_nothing_is_said():
    net, (x, y) = oracles.small_net(), oracles.data()
    measure = flatness_surrogate()
    net.head.bias.data.zero_()
    squares = float(net.head.weight.square().sum())
    zeros = torch.zeros_like(x)
    for part in net.children():
        if getattr(part, "bias", None) is not None:
            part.bias.data.zero_()
    at_most = squares * (1 - 1 / 3)
    assert float(value_of(measure, net, cross_entropy, zeros, y)) == pytest.approx(at_most, rel=1e-12)
    assert float(value_of(measure, net, cross_entropy, x, y)) < at_most


def test_laws_of_the_surrogate():
    net, (x, y) = oracles.small_net(), oracles.data()
    one_batch_is_many(flatness_surrogate(), net, x, y)
    vmap_is_loop(flatness_surrogate(), net, x, y)
    with pytest.raises(Refused, match="softmax classifier"):
        value_of(
            flatness_surrogate(), oracles.small_net(sizes=(4, 3, 1)), squared_error, x, y.double()[:, None]
        )


def test_confidence_at_a_temperature():
    net, (x, y) = oracles.small_net(), oracles.data()

    def by_hand(params):
        return probabilities(net, x, params, 2.0).square().sum() / len(x)

    gradient_is_that_of(by_hand, gini_confidence(temperature=2.0), net, x, y)
    assert "temperature 2" in gini_confidence(temperature=2.0).definition
