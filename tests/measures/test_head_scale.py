"""Measures of a rescaled head against the network whose head has been multiplied by hand."""

from __future__ import annotations

import copy
import math

import oracles
import pytest
import torch
from laws import one_batch_is_many, value_of
from scipy.optimize import brentq
from torch import nn
from torch.nn import functional as F

from flattrain.core.losses import cross_entropy
from flattrain.measures.head_scale import matched_relative_flatness, rescaled, rescaled_loss_gap
from flattrain.ranges import Refused
from flattrain.training.evaluate import contrast_on
from flattrain.types import Network


def multiplied(net, c):
    other = copy.deepcopy(net)
    with torch.no_grad():
        other.head.weight *= c
        other.head.bias *= c
    return other


def fitted(n=40):
    """A net and labels of which most are its own predictions, sharpened until its loss is small."""
    net, (x, y) = oracles.small_net(), oracles.data(n=n)
    with torch.no_grad():
        y[: n - 2] = net(x).argmax(1)[: n - 2]
    return multiplied(net, 4.0), x, y


@pytest.mark.parametrize("c", [0.25, 1.0, 4.0])
def test_every_measure_is_that_of_the_multiplied_net(c):
    net, x, y = fitted()
    other = multiplied(net, c)
    h = oracles.full_hessian(other, F.cross_entropy, x, y)
    logits = other(x)
    wanted = {
        "loss": F.cross_entropy(logits, y),
        "error": (logits.argmax(1) != y).double().mean(),
        "relative_flatness": oracles.kappa(other, h, "head"),
        "weight_norm": other.head.weight.square().sum() + other.head.bias.square().sum(),
    }
    for of, number in wanted.items():
        found = value_of(rescaled(of=of, factor=c), net, cross_entropy, x, y)
        torch.testing.assert_close(found.detach(), number.detach(), rtol=1e-10, atol=0)
    assert 0 < wanted["error"] < 1


def test_the_gap_is_the_difference_of_two_losses():
    net, x, y = fitted()
    network = Network(net, cross_entropy, {k: p.detach() for k, p in net.named_parameters()}, {})
    found = contrast_on(
        rescaled_loss_gap(factor=3.0), network, [(x[:30], y[:30])], [(x[30:], y[30:])], ("k",)
    )
    other = multiplied(net, 3.0)
    wanted = F.cross_entropy(other(x[30:]), y[30:]) - F.cross_entropy(other(x[:30]), y[:30])
    torch.testing.assert_close(torch.as_tensor(found.value), wanted.detach(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("level", [0.3, 0.6])
def test_matched_flatness_is_that_of_the_net_at_that_loss_whatever_its_scale(level):
    net, x, y = fitted()
    z = net(x).detach()
    beta = brentq(lambda b: float(F.cross_entropy(b * z, y)) - level, 1e-6, 0.5, xtol=1e-15)
    other = multiplied(net, beta)
    wanted = oracles.kappa(other, oracles.full_hessian(other, F.cross_entropy, x, y), "head")
    # Factors that leave the loss above the level on one side of its minimum and on the other.
    for factor in (1.0, 0.01, 100.0):
        measure = matched_relative_flatness(loss=level, factor=factor)
        found = value_of(measure, net, cross_entropy, x, y)
        torch.testing.assert_close(found.detach(), wanted, rtol=1e-8, atol=0)
    assert F.cross_entropy(100 * z, y) > level and F.cross_entropy(0.01 * z, y) > level


def test_a_loss_that_no_scale_reaches_has_no_matched_flatness():
    net, x, y = fitted()
    z = net(x).detach()
    lowest = min(float(F.cross_entropy(b * z, y)) for b in torch.linspace(0, 2, 2001))
    for level, there in ((lowest - 0.01, False), (lowest + 0.01, True), (math.log(3) + 0.01, False)):
        found = value_of(matched_relative_flatness(loss=level), net, cross_entropy, x, y)
        assert math.isfinite(found) == there
    y = net(x).argmax(1)  # every prediction is right: any loss below log K is reached
    assert math.isfinite(value_of(matched_relative_flatness(loss=1e-6), net, cross_entropy, x, y))


def test_batches_combine_and_layers_before_the_head_are_refused():
    net, x, y = fitted()
    for of in ("loss", "relative_flatness", "weight_norm"):
        one_batch_is_many(rescaled(of=of, factor=2.0), net, x, y)
    for layer, sizes in (("hidden1", (4, 5, 3)), ("head", (4, 5, 3))):
        small = oracles.small_net(sizes=sizes)
        tail = small if layer == "hidden1" else nn.Sequential(small, nn.Tanh())
        name = layer if layer == "hidden1" else "0.head"
        with pytest.raises(Refused, match="does not give the outputs"):
            value_of(rescaled(layer=name), tail, cross_entropy, x, y)
