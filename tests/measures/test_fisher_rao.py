"""Fisher–Rao norm against per-example gradients, and against the layer-count form where that is the same."""

from __future__ import annotations

import oracles
import pytest
import torch
from laws import gradient_is_that_of, one_batch_is_many, value_of, vmap_is_loop
from torch import nn
from torch.func import functional_call, grad
from torch.nn import functional as F

from flattrain.core.losses import cross_entropy, mean_squared_error, squared_error
from flattrain.measures.fisher_rao import fisher_rao
from flattrain.ranges import Refused


def explicit(net, loss, x, y, params):
    total = 0
    for k in range(len(x)):
        g = grad(lambda p, k=k: loss(functional_call(net, p, (x[k : k + 1],)), y[k : k + 1]))(params)
        total = total + (oracles.flat(g) @ oracles.flat(params)) ** 2 / len(x)
    return total.sqrt()


def coded(net, x, y, weight_layers):
    """The form of Petzka et al.: (L + 1) √ mean (⟨p, z⟩ − z_y)², L + 1 the number of weight layers."""
    z = net(x).detach()
    return weight_layers * ((z.softmax(1) * z).sum(1) - z[torch.arange(len(z)), y]).square().mean().sqrt()


@pytest.mark.parametrize("kind", ["tanh", "relu"])
def test_value_and_gradient_are_those_of_the_definition(kind):
    net, (x, y) = oracles.small_net(kind, (3, 4, 3)), oracles.data(n=6, inputs=3)
    gradient_is_that_of(lambda p: explicit(net, F.cross_entropy, x, y, p), fisher_rao(), net, x, y)


@pytest.mark.parametrize("criterion", [squared_error, mean_squared_error], ids=lambda c: c.name)
def test_squared_errors(criterion):
    net, (x, _) = oracles.small_net(sizes=(3, 4, 2)), oracles.data(n=6, inputs=3)
    y = torch.randn(6, 2, generator=torch.Generator().manual_seed(3))
    definition = lambda p: explicit(net, criterion.mean, x, y, p)  # noqa: E731
    gradient_is_that_of(definition, fisher_rao(), net, x, y, criterion)


def test_without_biases_a_relu_net_has_the_layer_count_form_and_a_tanh_net_has_not():
    x, y = oracles.data()
    for sizes in ((4, 3), (4, 5, 3), (4, 5, 4, 3)):
        net = oracles.small_net("relu", sizes, bias=False)
        found = value_of(fisher_rao(), net, cross_entropy, x, y).detach()
        torch.testing.assert_close(found, coded(net, x, y, len(sizes) - 1), rtol=1e-10, atol=0)
    for net in (oracles.small_net("tanh", bias=False), oracles.small_net("relu", bias=True)):
        ratio = value_of(fisher_rao(), net, cross_entropy, x, y).detach() / coded(net, x, y, 2)
        assert abs(ratio - 1) > 0.02


def test_invariance_under_layerwise_rescaling():
    net, (x, y) = oracles.small_net("relu", bias=False), oracles.data()
    before = value_of(fisher_rao(), net, cross_entropy, x, y).detach()
    with torch.no_grad():
        net.hidden1.weight.mul_(7)
        net.head.weight.div_(7)
    after = value_of(fisher_rao(), net, cross_entropy, x, y).detach()
    torch.testing.assert_close(after, before, rtol=1e-12, atol=0)


def test_laws():
    net, (x, y) = oracles.small_net(), oracles.data()
    one_batch_is_many(fisher_rao(), net, x, y)
    vmap_is_loop(fisher_rao(), net, x, y)


def test_refusal():
    x, y = oracles.data()
    coupled = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    with pytest.raises(Refused, match="put BatchNorm in eval mode"):
        value_of(fisher_rao(), coupled, cross_entropy, x, y)
