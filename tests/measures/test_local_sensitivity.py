"""MLS and NMLS against Jacobians one example at a time, and the bound by the sharpness at interpolation."""

from __future__ import annotations

import oracles
import pytest
import torch
from laws import gradient_is_that_of, one_batch_is_many, value_of, vmap_is_loop
from torch import nn

from flattrain.core.losses import cross_entropy
from flattrain.measures.local_sensitivity import local_sensitivity, network_local_sensitivity
from flattrain.ranges import Refused


def top(j):
    return torch.linalg.svdvals(j)[:, 0].mean()


def tails(net, x, params):
    """Σ over the linear layers of MLS of the part of the net from that layer on."""
    total, features = torch.zeros(()), x
    for k, (name, part) in enumerate(net.named_children()):
        if isinstance(part, nn.Linear):
            rest = net[k:]
            own = {n: p for n, p in params.items() if n in dict(rest.named_parameters())}
            total = total + top(oracles.input_jacobians(rest, features, own))
            features = torch.nn.functional.linear(features, params[f"{name}.weight"], params[f"{name}.bias"])
        else:
            features = part(features)
    return total


def test_mls_is_the_mean_of_the_largest_singular_values():
    net, (x, y) = oracles.small_net(sizes=(3, 4, 3)), oracles.data(n=6, inputs=3)
    gradient_is_that_of(lambda p: top(oracles.input_jacobians(net, x, p)), local_sensitivity(), net, x, y)


@pytest.mark.parametrize("kind", ["tanh", "relu"])
def test_nmls_treats_every_layers_input_as_the_input(kind):
    net, (x, y) = oracles.small_net(kind, (3, 4, 3, 2)), oracles.data(n=6, inputs=3, classes=2)
    gradient_is_that_of(lambda p: tails(net, x, p), network_local_sensitivity(), net, x, y)
    first = value_of(network_local_sensitivity(layers=("hidden1",)), net, cross_entropy, x, y)
    torch.testing.assert_close(
        first, value_of(local_sensitivity(), net, cross_entropy, x, y), rtol=1e-10, atol=0
    )


def test_mls_is_bounded_by_the_gradients_of_the_outputs():
    net, (x, y) = oracles.small_net(), oracles.data()
    s = oracles.parameter_jacobians(net, x).square().sum((1, 2)).mean()
    w = torch.linalg.matrix_norm(net.hidden1.weight, 2)
    bound = w * (1 / x.square().sum(1)).mean().sqrt() * s.sqrt()
    found = value_of(local_sensitivity(), net, cross_entropy, x, y)
    assert 0.05 * bound < found < bound


def test_laws():
    net, (x, y) = oracles.small_net(), oracles.data()
    for measure in (local_sensitivity(), network_local_sensitivity()):
        one_batch_is_many(measure, net, x, y)
        vmap_is_loop(measure, net, x, y)


def test_refusals():
    x, y = oracles.data()
    coupled = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    with pytest.raises(Refused, match="ties the examples"):
        value_of(network_local_sensitivity(layers=("0",)), coupled, cross_entropy, x, y)
    net = nn.Sequential(nn.Linear(4, 5), nn.Flatten(), nn.Linear(10, 3))
    with pytest.raises(Refused, match="needs one row of features per example"):
        value_of(network_local_sensitivity(), net, cross_entropy, torch.randn(12, 2, 4), y)
