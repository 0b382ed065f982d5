"""Measures of the two-layer nets' variants against one gradient per example, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flattrain.core.losses import smoothed_logistic, squared_error
from flattrain.core.probes import stream
from flattrain.measures.gauss_newton_trace import gauss_newton_trace
from flattrain.measures.norms import column_ratio
from flattrain.measures.pulled_back_trace import pulled_back_trace
from flattrain.measures.two_layer_trace import two_layer_trace
from flattrain.problems.parity import parity
from flattrain.problems.two_layer import two_layer
from flattrain.ranges import Refused
from flattrain.training.evaluate import evaluate
from flattrain.types import Network


def network(criterion=squared_error, **settings):
    split = parity(dim=6, train=12, test=5)(0).each(lambda t: t.double())
    model = two_layer(width=5, **settings)
    module = model.build(split).double()
    params = {k: v.double() for k, v in model.start(module, split, stream(0)).items()}
    buffers = {k: v.double() for k, v in model.buffers(module, split).items()}
    return Network(module, criterion, params, buffers), split


def value(measure, net, split):
    return evaluate(measure, net, split.train_x, split.train_y, (0, "test", 0)).value


def squares(net, split):
    """‖∂f_i/∂θ‖² of each example, by reverse mode on a copy of the parameters."""
    out = []
    for x in split.train_x:
        live = {k: v.clone().requires_grad_() for k, v in net.params.items()}
        f = torch.func.functional_call(net.module, (live, net.buffers), (x[None],)).sum()
        out.append(sum(g.square().sum() for g in torch.autograd.grad(f, list(live.values()))))
    return torch.stack(out)


@pytest.mark.parametrize("settings", [{"normalisation": "batch"}, {"activation": "softplus"}, {}])
def test_the_pulled_back_trace_is_lemma_4_1s(settings):
    net, split = network(**settings)
    found = value(pulled_back_trace(), net, split)
    torch.testing.assert_close(found, 2 * squares(net, split).mean(), rtol=1e-12, atol=0)
    if "normalisation" not in settings:
        torch.testing.assert_close(found, value(gauss_newton_trace(), net, split), rtol=1e-12, atol=0)


def test_under_the_smoothed_logistic_loss_each_example_weighs_its_variance():
    net, split = network(smoothed_logistic)
    f = torch.func.functional_call(net.module, net.params, (split.train_x,)).flatten()
    wanted = (f.sigmoid() * (-f).sigmoid() * squares(net, split)).mean()
    for measure in (pulled_back_trace(), gauss_newton_trace()):
        torch.testing.assert_close(value(measure, net, split), wanted, rtol=1e-12, atol=0)


def test_the_smoothed_logistic_loss_is_smallest_at_log_four():
    target = torch.tensor([1.0, -1.0])
    z = (target * torch.log(torch.tensor(4.0)))[:, None].requires_grad_()
    loss = smoothed_logistic.mean(z, target)
    p = torch.tensor(0.2)
    torch.testing.assert_close(loss, -(1 - p) * (1 - p).log() - p * p.log())  # the entropy of the labels
    (slope,) = torch.autograd.grad(loss, z, create_graph=True)
    torch.testing.assert_close(slope, torch.zeros_like(z), rtol=0, atol=1e-15)
    (curvature,) = torch.autograd.grad(slope.sum(), z)
    torch.testing.assert_close(2 * curvature, torch.full_like(z, 0.16))
    assert smoothed_logistic.error(z, target) == 0 and smoothed_logistic.error(-z, target) == 1


def test_the_column_ratio():
    net, split = network()
    weight = torch.zeros(5, 6)
    weight[0, 0], weight[1, 1], weight[2, 1], weight[3, 4] = 3.0, 4.0, 3.0, -0.5
    net.params["hidden.weight"] = weight
    assert value(column_ratio(), net, split) == 3.0 / 0.5
    with pytest.raises(Refused, match="relevant must be below the 6 inputs"):
        value(column_ratio(relevant=6), net, split)


def test_the_closed_form_refuses_a_softplus_net():
    net, split = network(activation="softplus")
    with pytest.raises(Refused, match="of relu nets"):
        value(two_layer_trace(), net, split)
    with pytest.raises(Refused, match="goes with normalisation none"):
        two_layer(activation="softplus", normalisation="layer")
    out = net.module(split.train_x)
    assert isinstance(net.module.hidden, nn.Linear) and out.shape == (12, 1)
