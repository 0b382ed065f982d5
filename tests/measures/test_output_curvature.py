"""Curvature in the outputs by explicit Hessians, and the Lipschitz slack by a loop over pairs."""

from __future__ import annotations

import oracles
import pytest
import torch
from laws import one_batch_is_many, value_of
from torch.nn import functional as F

from flattrain.core.losses import cross_entropy, squared_error
from flattrain.measures.lipschitz_slack import lipschitz_slack
from flattrain.measures.output_curvature import output_curvature
from flattrain.ranges import Refused


def test_output_curvature_is_that_of_the_explicit_hessians():
    net, (x, y) = oracles.small_net(), oracles.data()
    tops = []
    for z, label in zip(net(x).detach(), y, strict=True):
        hessian = torch.func.hessian(F.cross_entropy)(z, label)
        tops.append(torch.linalg.eigvalsh(hessian)[-1])
    found = value_of(output_curvature(), net, cross_entropy, x, y)
    torch.testing.assert_close(found.detach(), torch.stack(tops).mean(), rtol=1e-12, atol=0)
    one_batch_is_many(output_curvature(), net, x, y)
    targets = F.one_hot(y, 3).double()
    constant = value_of(output_curvature(), net, squared_error, x, targets)
    assert float(constant.detach()) == pytest.approx(2, rel=1e-12)


def test_lipschitz_slack_is_that_of_a_loop_over_pairs():
    net, (x, y) = oracles.small_net("tanh", (4, 12, 3)), oracles.data()
    targets = (net(x) + 0.05 * F.one_hot(y, 3)).detach()
    residual = (net(x) - targets).norm(dim=1)
    demands = {}
    for i in range(len(x)):
        for j in range(len(x)):
            if i != j:
                gap = (targets[i] - targets[j]).norm() - residual[i] - residual[j]
                demands[i, j] = float(gap / (x[i] - x[j]).norm())
    (i, j), demand = max(demands.items(), key=lambda pair: pair[1])
    assert demand > 0.1
    steepest = max(
        float(torch.linalg.svdvals(torch.func.jacrev(net)(x[i] + t * (x[j] - x[i])))[0])
        for t in torch.linspace(0, 1, 65)
    )
    found = float(value_of(lipschitz_slack(), net, squared_error, x, targets).detach())
    assert found == pytest.approx(steepest - demand, rel=1e-9)
    assert found > 0


def test_a_linear_map_along_its_steepest_direction_has_no_slack():
    net = torch.nn.Sequential()
    net.add_module("head", torch.nn.Linear(2, 2, bias=False))
    net.head.weight.data = torch.diag(torch.tensor([3.0, 1.0]))
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    found = value_of(lipschitz_slack(), net, squared_error, x, net(x).detach())
    assert float(found.detach()) == pytest.approx(0, abs=1e-12)


def test_class_labels_are_refused():
    net, (x, y) = oracles.small_net(), oracles.data()
    with pytest.raises(Refused, match="real targets"):
        value_of(lipschitz_slack(), net, cross_entropy, x, y)
