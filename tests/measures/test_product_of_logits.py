"""The grokking study's expression by hand, and what it is not defined for."""

from __future__ import annotations

import oracles
import pytest
import torch
from laws import one_batch_is_many, value_of
from torch import nn

from flattrain.core.losses import cross_entropy
from flattrain.measures.product_of_logits import product_of_logits
from flattrain.ranges import Refused


def two_answers(n=13):
    net = nn.Sequential()
    net.add_module("head", nn.Linear(5, 4, bias=False))
    return net, torch.randn(n, 2, 5), torch.randint(4, (n, 2))


def test_it_is_its_formula_answer_by_answer():
    net, phi, y = two_answers()
    total = 0.0
    for one, two in phi.unbind(0):
        z = [net.head.weight @ one, net.head.weight @ two]
        p = torch.tensor([float(a * b) for a, b in zip(*z, strict=True)]).exp()
        p = p / p.sum()
        total += float((one @ one + two @ two) * sum(q * (1 - q) for q in p))
    wanted = float((net.head.weight**2).sum()) * total / len(phi)
    assert float(value_of(product_of_logits(), net, cross_entropy, phi, y)) == pytest.approx(wanted, rel=1e-6)
    one_batch_is_many(product_of_logits(), net, phi, y)


def test_one_answer_or_three_are_refused():
    net, (x, y) = oracles.small_net(), oracles.data()
    with pytest.raises(Refused, match="two answers"):
        value_of(product_of_logits(), net, cross_entropy, x, y)
    net, phi, y = two_answers()
    with pytest.raises(Refused, match="two answers"):
        value_of(
            product_of_logits(),
            net,
            cross_entropy,
            torch.cat([phi, phi[:, :1]], 1),
            torch.cat([y, y[:, :1]], 1),
        )
