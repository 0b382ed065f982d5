"""Calibration error by a loop over bins; the temperature by scipy and in closed form; its limits."""

from __future__ import annotations

import math

import oracles
import pytest
import torch
from laws import one_batch_is_many, value_of
from scipy.optimize import minimize_scalar
from torch import nn
from torch.nn import functional as F

from flattrain.core.losses import cross_entropy, squared_error
from flattrain.measures.calibration import calibration_error, temperature, tempered_loss
from flattrain.ranges import Refused


class Outputs(nn.Module):
    """Returns its input times a weight of 1: the logits of a test are the data."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.scale * x


def value(measure, z, y):
    return float(value_of(measure, Outputs(), cross_entropy, z, y))


def noisy(n=400, classes=4, scale=1.0, seed=0):
    """Logits z and labels drawn from softmax(z / scale): the best temperature is near `scale`."""
    generator = torch.Generator().manual_seed(seed)
    z = scale * torch.randn(n, classes, generator=generator) * 2
    y = torch.multinomial((z / scale).softmax(1), 1, generator=generator)[:, 0]
    return z, y


@pytest.mark.parametrize("bins", [1, 5, 15])
def test_calibration_error_is_the_loop_over_bins(bins):
    z, y = noisy(scale=3.0)
    confidence, predicted = z.softmax(1).max(1)
    wanted = 0.0
    for b in range(bins):
        inside = [i for i in range(len(z)) if b / bins < confidence[i] <= (b + 1) / bins]
        if inside:
            accuracy = sum(float(predicted[i] == y[i]) for i in inside) / len(inside)
            mean = sum(float(confidence[i]) for i in inside) / len(inside)
            wanted += abs(accuracy - mean) * len(inside) / len(z)
    assert value(calibration_error(bins=bins), z, y) == pytest.approx(wanted, rel=1e-10)
    assert wanted > 0.1


def test_calibration_error_of_sure_predictions_is_their_error():
    z = torch.tensor([[1000.0, 0.0]] * 10)  # a confidence of 1 lies in the last bin
    y = torch.tensor([0] * 7 + [1] * 3)
    assert value(calibration_error(), z, y) == pytest.approx(0.3, rel=1e-12)
    assert value(calibration_error(), z, torch.zeros(10).long()) == 0


@pytest.mark.parametrize("scale", [0.05, 1.0, 20.0])
def test_temperature_is_the_minimum_found_by_scipy(scale):
    z, y = noisy(scale=scale)
    found = minimize_scalar(
        lambda t: float(F.cross_entropy(z / math.exp(t), y)), bracket=(-4, 4), method="brent", tol=1e-12
    )
    assert value(temperature(), z, y) == pytest.approx(math.exp(found.x), rel=1e-6)
    assert value(tempered_loss(), z, y) == pytest.approx(found.fun, rel=1e-12)
    assert value(temperature(), z, y) == pytest.approx(scale, rel=0.2)


def test_temperature_in_closed_form():
    """Two classes, logit c, a share q right: σ(c/T) = q, T = c / log(q/(1−q)); the loss is the entropy."""
    z, y = torch.tensor([[3.0, 0.0]] * 10), torch.tensor([0] * 8 + [1] * 2)
    assert value(temperature(), z, y) == pytest.approx(3 / math.log(4), rel=1e-12)
    entropy = -0.8 * math.log(0.8) - 0.2 * math.log(0.2)
    assert value(tempered_loss(), z, y) == pytest.approx(entropy, rel=1e-12)
    assert value(temperature(), 5 * z, y) == pytest.approx(15 / math.log(4), rel=1e-12)


def test_a_temperature_may_be_nothing_or_without_bound():
    z, y = torch.tensor([[2.0, 0.0, 1.0], [0.0, 1.0, 0.5]]), torch.tensor([0, 1])
    assert value(temperature(), z, y) == 0 and value(tempered_loss(), z, y) == 0
    tied = torch.tensor([[2.0, 2.0, 1.0], [0.0, 1.0, 0.5]])
    assert value(tempered_loss(), tied, y) == pytest.approx(math.log(2) / 2, rel=1e-12)
    wrong = torch.tensor([1, 0])
    assert value(temperature(), z, wrong) == math.inf
    assert value(tempered_loss(), z, wrong) == pytest.approx(math.log(3), rel=1e-12)


def test_the_tempered_loss_ignores_the_scale_of_the_head():
    net, (x, y) = oracles.small_net(), oracles.data(n=40)
    with torch.no_grad():
        y[:25] = net(x).argmax(1)[:25]
    before = float(value_of(tempered_loss(), net, cross_entropy, x, y))
    assert before < math.log(3) - 1e-3
    with torch.no_grad():
        net.head.weight.mul_(9)
        net.head.bias.mul_(9)
    assert float(value_of(tempered_loss(), net, cross_entropy, x, y)) == pytest.approx(before, rel=1e-12)


def test_laws():
    net, (x, y) = oracles.small_net(), oracles.data(n=23)
    with torch.no_grad():
        y[:15] = net(x).argmax(1)[:15]
    for measure in (calibration_error(), temperature(), tempered_loss()):
        one_batch_is_many(measure, net, x, y)


def test_refusals():
    net, (x, _) = oracles.small_net(sizes=(4, 1)), oracles.data()
    for measure in (calibration_error(), temperature()):
        with pytest.raises(Refused, match="use the loss cross_entropy with two or more outputs"):
            value_of(measure, net, squared_error, x, torch.ones(12))
    with pytest.raises(Refused, match="bins must be a whole number >= 1"):
        calibration_error(bins=0)
