"""Margins by loops over examples, quantiles by numpy, and what the normalisation makes them ignore."""

from __future__ import annotations

import numpy as np
import oracles
import pytest
import torch
from laws import gradient_is_that_of, one_batch_is_many, value_of
from torch.func import functional_call

from flattrain.core.losses import cross_entropy, squared_error
from flattrain.measures.margins import margin_quantile, mean_margin
from flattrain.ranges import Refused


def loop(net, x, y, params=None, spectral=False):
    params = params or {k: p.detach() for k, p in net.named_parameters()}
    out = []
    for z, label in zip(functional_call(net, params, (x,)), y, strict=True):
        out.append(z[label] - torch.stack([z[k] for k in range(len(z)) if k != label]).max())
    tops = [torch.linalg.svdvals(p)[0] for k, p in params.items() if k.endswith("weight")]
    return torch.stack(out) / (torch.stack(tops).prod() if spectral else 1)


def value(measure, net, x, y, criterion=cross_entropy):
    return float(value_of(measure, net, criterion, x, y).detach())


@pytest.mark.parametrize("normalisation", ["none", "spectral"])
def test_mean_margin_and_its_gradient_are_those_of_the_definition(normalisation):
    net, (x, y) = oracles.small_net(sizes=(3, 4, 3)), oracles.data(inputs=3)
    gradient_is_that_of(
        lambda p: loop(net, x, y, p, normalisation == "spectral").mean(),
        mean_margin(normalisation=normalisation),
        net,
        x,
        y,
    )


@pytest.mark.parametrize("quantile", [0, 0.1, 0.5, 0.77, 1])
@pytest.mark.parametrize("normalisation", ["none", "spectral"])
def test_quantiles_are_numpys(quantile, normalisation):
    net, (x, y) = oracles.small_net(), oracles.data(n=23)
    measure = margin_quantile(quantile=quantile, normalisation=normalisation)
    wanted = np.quantile(loop(net, x, y, spectral=normalisation == "spectral").numpy(), quantile)
    assert value(measure, net, x, y) == pytest.approx(float(wanted), rel=1e-12)
    one_batch_is_many(measure, net, x, y)


def test_positive_margin_means_right_and_one_output_takes_signs():
    net, (x, y) = oracles.small_net(), oracles.data()
    right = (net(x).argmax(1) == y).tolist()
    assert [m > 0 for m in loop(net, x, y).tolist()] == right and 0 < sum(right) < len(right)
    one, signs = oracles.small_net(sizes=(4, 5, 1)), torch.where(y > 0, 1.0, -1.0)
    wanted = float((one(x)[:, 0] * signs).detach().mean())
    assert value(mean_margin(), one, x, signs, squared_error) == pytest.approx(wanted, rel=1e-12)
    hot = torch.nn.functional.one_hot(y, 3).double()
    assert value(mean_margin(), net, x, hot) == pytest.approx(value(mean_margin(), net, x, y), rel=1e-14)


def test_the_spectral_normalisation_ignores_the_scale_of_the_weights():
    net, (x, y) = oracles.small_net("relu", bias=False), oracles.data()
    measure = margin_quantile(normalisation="spectral")
    before, plain = value(measure, net, x, y), value(margin_quantile(), net, x, y)
    with torch.no_grad():
        net.head.weight.mul_(7)
    assert value(measure, net, x, y) == pytest.approx(before, rel=1e-12)
    assert value(margin_quantile(), net, x, y) == pytest.approx(7 * plain, rel=1e-12)


def test_laws():
    net, (x, y) = oracles.small_net(), oracles.data()
    one_batch_is_many(mean_margin(), net, x, y)
    one_batch_is_many(mean_margin(normalisation="spectral"), net, x, y)


def test_refusals():
    with pytest.raises(Refused, match="quantile must be a number from 0 to 1"):
        margin_quantile(quantile=1.5)
    net, (x, _) = oracles.small_net(), oracles.data()
    with pytest.raises(Refused, match="give whole-number labels"):
        value(mean_margin(), net, x, torch.randn(12), squared_error_of_the_first())


def squared_error_of_the_first():
    from flattrain.core.losses import recognise

    return recognise(lambda z, y: (z[:, 0] - y).square().mean())
