"""Participation ratios against spectra by numpy and closed forms."""

from __future__ import annotations

import numpy as np
import oracles
import pytest
import torch
from laws import gradient_is_that_of, one_batch_is_many, value_of, vmap_is_loop
from torch import nn
from torch.nn import functional as F

from flattrain.core.losses import cross_entropy
from flattrain.measures.participation_ratio import local_dimensionality, participation_ratio


def of(spectrum):
    return spectrum.sum() ** 2 / (spectrum**2).sum()


def features(x, params):
    return torch.tanh(F.linear(x, params["hidden1.weight"], params["hidden1.bias"]))


def test_value_and_gradient_of_the_covariance():
    net, (x, y) = oracles.small_net(sizes=(3, 4, 3)), oracles.data(inputs=3)

    def definition(p):
        phi = features(x, p)
        return of(torch.linalg.svdvals(phi - phi.mean(0)) ** 2)

    gradient_is_that_of(definition, participation_ratio(), net, x, y)
    with torch.no_grad():
        phi = features(x, dict(net.named_parameters())).numpy()
    found = value_of(participation_ratio(), net, cross_entropy, x, y).detach()
    assert float(found) == pytest.approx(of(np.linalg.eigvalsh(np.cov(phi.T))), rel=1e-10)


def test_value_and_gradient_of_the_local_one():
    net, (x, y) = oracles.small_net(sizes=(3, 4, 3)), oracles.data(n=5, inputs=3)

    def definition(p):
        return torch.stack(
            [of(torch.linalg.svdvals(j) ** 2) for j in oracles.input_jacobians(net, x, p)]
        ).mean()

    gradient_is_that_of(definition, local_dimensionality(), net, x, y)


def test_closed_forms():
    net = nn.Sequential()
    net.add_module("head", nn.Linear(4, 3, bias=False))
    with torch.no_grad():
        net.head.weight.copy_(torch.eye(3, 4))
    y = torch.zeros(6).long()
    x = torch.cat([torch.eye(4)[:3], -torch.eye(4)[:3]]) + 5  # the mean does not count
    assert float(value_of(participation_ratio(), net, cross_entropy, x, y)) == pytest.approx(3, rel=1e-12)
    line = torch.arange(6.0)[:, None] * torch.tensor([1.0, 2.0, 0.0, -1.0])
    assert float(value_of(participation_ratio(), net, cross_entropy, line, y)) == pytest.approx(1, rel=1e-12)
    dimension = value_of(local_dimensionality(), net, cross_entropy, x, y)
    assert float(dimension.detach()) == pytest.approx(3, rel=1e-12)
    with torch.no_grad():
        net.head.weight.mul_(torch.tensor([[1.0], [0.0], [0.0]]))
    dimension = value_of(local_dimensionality(), net, cross_entropy, x, y)
    assert float(dimension.detach()) == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("measure", [participation_ratio(), local_dimensionality()], ids=lambda m: m.name)
def test_laws(measure):
    net, (x, y) = oracles.small_net(), oracles.data(n=23)
    one_batch_is_many(measure, net, x, y)
    vmap_is_loop(measure, net, x, y)
