"""The inequality between the weighted path norm and the top eigenvalue, by explicit Hessians."""

from __future__ import annotations

import oracles
import pytest
import torch
from torch import nn

from flattrain.core.losses import half_squared_error, squared_error
from flattrain.measures.loss import loss_gap
from flattrain.measures.stability import dead_units, path_inequality
from flattrain.ranges import Refused
from flattrain.training.evaluate import contrast_on, evaluate
from flattrain.types import Network


def net_and_data(seed, width=6, dim=3, n=14):
    torch.manual_seed(seed)
    net = nn.Sequential()
    net.add_module("hidden1", nn.Linear(dim, width))
    net.add_module("act1", nn.ReLU())
    net.add_module("head", nn.Linear(width, 1))
    for p in net.parameters():
        p.data.normal_(0, 10 ** (2 * torch.rand(()).item() - 1))
    return net.double(), torch.randn(n, dim), torch.randn(n)


def network(net, criterion=half_squared_error):
    return Network(net, criterion, {k: p.detach() for k, p in net.named_parameters()}, {})


def by_hand(net, x, y):
    """W over its bound, unit by unit, with the explicit Hessian."""
    z = net.hidden1(x).detach()
    total = 0.0
    for k in range(z.shape[1]):
        on = (z[:, k] > 0).double()
        reach = ((on.mean() ** 2) + (on[:, None] * x).mean(0).square().sum()).sqrt()
        total = total + net.head.weight[0, k].detach().abs() * z[:, k].clamp(min=0).mean() * reach
    top = torch.linalg.eigvalsh(oracles.full_hessian(net, half_squared_error.mean, x, y))[-1]
    loss = half_squared_error.mean(net(x), y).detach()
    return total / ((top - 1) / 2 + ((x.square().sum(1).max() + 1) * 2 * loss).sqrt() / 2)


def test_no_net_breaks_the_inequality_and_the_value_is_the_definitions():
    ratios = []
    for seed in range(40):
        net, x, y = net_and_data(seed)
        wanted = by_hand(net, x, y)
        ratios.append(wanted)
        assert wanted <= 1
        if seed < 5:
            found = evaluate(path_inequality(products=31), network(net), x, y, (0, "t", 0)).value
            torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)
    assert max(ratios) > 0.3  # it is no empty statement


def test_the_loss_is_half_the_square():
    net, x, y = net_and_data(0)
    torch.testing.assert_close(half_squared_error.mean(net(x), y), squared_error.mean(net(x), y) / 2)
    seen = torch.linalg.eigvalsh(oracles.full_hessian(net, half_squared_error.mean, x, y))
    twice = torch.linalg.eigvalsh(oracles.full_hessian(net, squared_error.mean, x, y))
    torch.testing.assert_close(2 * seen, twice)
    with pytest.raises(Refused, match="half_squared_error"):
        evaluate(path_inequality(), network(net, squared_error), x, y, (0, "t", 0))


def test_dead_units_and_the_gap():
    net, x, y = net_and_data(0)
    net.hidden1.bias.data[:2] = -1e4
    net.hidden1.bias.data[2:] = 1e4
    assert evaluate(dead_units(), network(net), x, y, (0, "t", 0)).value == pytest.approx(2 / 6)
    gap = contrast_on(loss_gap(), network(net), [(x[:5], y[:5])], [(x[5:], y[5:])], (0, "t", 0)).value
    on = [half_squared_error.mean(net(x[part]), y[part]) for part in (slice(5), slice(5, None))]
    torch.testing.assert_close(torch.as_tensor(gap), (on[1] - on[0]).detach())
