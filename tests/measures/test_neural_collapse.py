"""NCC by loops over classes and pairs, closed forms, and exact combination of batches."""

from __future__ import annotations

import math

import oracles
import pytest
import torch
from laws import gradient_is_that_of, one_batch_is_many, value_of, vmap_is_loop
from torch.nn import functional as F

from flattrain.core.losses import cross_entropy, squared_error
from flattrain.measures.neural_collapse import neural_collapse


def loop(phi, y):
    groups = [phi[y == c] for c in sorted(set(y.tolist()))]
    centres = [g.mean(0) for g in groups]
    spread = [(g - m).square().sum(1).mean() for g, m in zip(groups, centres, strict=True)]
    pairs = [(a, b) for a in range(len(groups)) for b in range(a)]
    each = [(spread[a] + spread[b]) / (2 * (centres[a] - centres[b]).square().sum()) for a, b in pairs]
    return torch.stack(each).mean()


def features(x, params):
    return torch.tanh(F.linear(x, params["hidden1.weight"], params["hidden1.bias"]))


def head(inputs, outputs):
    net = torch.nn.Sequential()
    net.add_module("head", torch.nn.Linear(inputs, outputs))
    return net


def test_value_and_gradient_are_those_of_the_definition():
    net, (x, y) = oracles.small_net(sizes=(3, 4, 3)), oracles.data(n=15, inputs=3)
    assert len(set(y.tolist())) == 3
    gradient_is_that_of(lambda p: loop(features(x, p), y), neural_collapse(), net, x, y)


def test_a_class_without_examples_is_left_out_and_one_class_alone_has_no_value():
    net, (x, y) = oracles.small_net(sizes=(3, 4, 5)), oracles.data(n=15, inputs=3)
    with torch.no_grad():
        wanted = float(loop(features(x, dict(net.named_parameters())), y))
    value = value_of(neural_collapse(), net, cross_entropy, x, y)
    assert float(value.detach()) == pytest.approx(wanted, rel=1e-10)
    grads = torch.autograd.grad(value, list(net.hidden1.parameters()))
    assert all(bool(torch.isfinite(g).all()) for g in grads)
    assert math.isnan(value_of(neural_collapse(), net, cross_entropy, x, torch.zeros_like(y)))


def test_closed_forms():
    x = torch.tensor([[1.0, 0.0], [3.0, 0.0], [2.0, 5.0], [2.0, 5.0]])
    y = torch.tensor([0, 0, 1, 1])  # V = 1 and 0, means (2, 0) and (2, 5)
    value = value_of(neural_collapse(), head(2, 2), cross_entropy, x, y)
    assert float(value) == pytest.approx(1 / 50, rel=1e-12)
    signs = torch.tensor([1.0, 1.0, -1.0, -1.0])
    value = value_of(neural_collapse(), head(2, 1), squared_error, x, signs)
    assert float(value) == pytest.approx(1 / 50, rel=1e-12)
    collapsed = torch.tensor([[2.0, 0.0], [2.0, 0.0], [2.0, 5.0], [2.0, 5.0]])
    assert float(value_of(neural_collapse(), head(2, 2), cross_entropy, collapsed, y)) == 0


def test_shift_and_scale_of_the_features_do_not_matter():
    x, y = oracles.data(n=30, inputs=4)
    before = float(value_of(neural_collapse(), head(4, 3), cross_entropy, x, y))
    after = float(value_of(neural_collapse(), head(4, 3), cross_entropy, 3 * x + 2, y))
    assert after == pytest.approx(before, rel=1e-10)


def test_laws():
    net, (x, y) = oracles.small_net(), oracles.data(n=23)
    one_batch_is_many(neural_collapse(), net, x, y)  # a batch of 3 has not every class
    vmap_is_loop(neural_collapse(), net, x, y)
