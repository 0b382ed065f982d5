"""Flatness in another basis against dense Hessians of a network that has that basis as a layer of its own."""

from __future__ import annotations

import math
from collections import OrderedDict

import oracles
import pytest
import torch
from laws import one_batch_is_many, value_of
from torch import nn
from torch.nn import functional as F

from flattrain.core.losses import cross_entropy
from flattrain.measures.basis_change import changed_basis
from flattrain.measures.feature_robustness import haar
from flattrain.measures.relative_flatness import relative_flatness
from flattrain.measures.relative_flatness_variants import layer_trace, normalised_relative_flatness
from flattrain.ranges import Refused

CHANGES = ("scale", "rotation", "neurons")
PLAIN = {
    "relative_flatness": lambda layer: relative_flatness(layer=layer, form="exact"),
    "layer_trace": lambda layer: layer_trace(layer=layer, form="exact"),
    "normalised": lambda layer: normalised_relative_flatness(layer=layer, form="exact"),
    "variance_normalised": lambda layer: normalised_relative_flatness(
        layer=layer, form="exact", divisor="variance"
    ),
}


def noise_of(change, width):
    shape = {"scale": None, "rotation": (width, width), "neurons": (width,)}[change]
    return {} if shape is None else {"basis": torch.randn(shape, generator=torch.Generator().manual_seed(3))}


def matrix_of(change, width, factor):
    """T itself."""
    noise = noise_of(change, width)
    if change == "scale":
        return factor * torch.eye(width)
    if change == "rotation":
        return haar(noise["basis"])
    uniform = 2 * torch.distributions.Normal(0.0, 1.0).cdf(noise["basis"]) - 1
    return torch.diag(factor**uniform)


def with_basis(net, layer, t):
    """The net with a linear layer T before `layer`, whose weight undoes it."""
    parts = OrderedDict()
    for name, part in net.named_children():
        if name == layer:
            basis = nn.Linear(len(t), len(t), bias=False)
            basis.weight = nn.Parameter(t)
            parts["basis"] = basis
            moved = nn.Linear(part.in_features, part.out_features)
            moved.weight = nn.Parameter(part.weight.detach() @ torch.linalg.inv(t))
            moved.bias = part.bias
            part = moved
        parts[name] = part
    return nn.Sequential(parts)


@pytest.mark.parametrize("layer", ["hidden2", "head"])
@pytest.mark.parametrize("change", CHANGES)
def test_it_is_the_flatness_of_the_net_with_that_basis(change, layer):
    net, (x, y) = oracles.small_net("tanh", (4, 5, 5, 3)), oracles.data()
    other = with_basis(net, layer, matrix_of(change, 5, 3.0))
    torch.testing.assert_close(other(x), net(x))  # the function is the same
    h = oracles.full_hessian(other, F.cross_entropy, x, y)
    wanted = {
        "relative_flatness": oracles.kappa(other, h, layer),
        "layer_trace": oracles.block(other, h, f"{layer}.weight").trace(),
    }
    for of, number in wanted.items():
        measure = changed_basis(of=of, change=change, factor=3.0, layer=layer)
        found = value_of(measure, net, cross_entropy, x, y, noise=noise_of(change, 5)).detach()
        torch.testing.assert_close(found, number, rtol=1e-10, atol=0)
    # Features divided by their deviations or variances are a change of basis themselves.
    features = {}
    before = dict(other.named_children())["basis"]
    before.register_forward_hook(lambda part, inputs, output: features.update(phi=output))
    other(x)
    variance = features["phi"].detach().var(0, correction=0)
    for of, divisor in (("normalised", variance.sqrt()), ("variance_normalised", variance)):
        t = torch.diag(1 / divisor) @ matrix_of(change, 5, 3.0)
        normal = with_basis(net, layer, t)
        h = oracles.full_hessian(normal, F.cross_entropy, x, y)
        measure = changed_basis(of=of, change=change, factor=3.0, layer=layer)
        found = value_of(measure, net, cross_entropy, x, y, noise=noise_of(change, 5)).detach()
        torch.testing.assert_close(found, oracles.kappa(normal, h, layer), rtol=1e-9, atol=0)


def test_what_is_invariant_and_what_is_not():
    net, (x, y) = oracles.small_net("relu", (4, 6, 3)), oracles.data()
    still = {
        "relative_flatness": {"scale", "rotation"},
        "layer_trace": {"rotation"},
        "normalised": {"scale", "neurons"},
        "variance_normalised": {"scale"},
    }
    for of, invariant in still.items():
        plain = value_of(PLAIN[of]("head"), net, cross_entropy, x, y).detach()
        for change in CHANGES:
            measure = changed_basis(of=of, change=change)
            ratio = value_of(measure, net, cross_entropy, x, y, noise=noise_of(change, 6)).detach() / plain
            assert (abs(ratio - 1) < 1e-10) == (change in invariant), (of, change, ratio)
            assert change in invariant or abs(ratio - 1) > 1e-2, (of, change, ratio)
    trace = value_of(layer_trace(), net, cross_entropy, x, y).detach()
    scaled = value_of(changed_basis(of="layer_trace", factor=7.0), net, cross_entropy, x, y).detach()
    assert float(scaled / trace) == pytest.approx(49)


def test_factors_of_neurons_are_log_uniform():
    net, (x, y) = oracles.small_net("relu", (4, 6, 3)), oracles.data()
    (want,) = changed_basis(change="neurons").draws(_seen(net, x, y)).values()
    assert want.shape == (6,) and not want.per_example
    g = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    d = (math.log(5) * torch.erf(g / math.sqrt(2))).exp()  # as in the measure, which the oracle above pins
    share = (d.log() / math.log(5) + 1) / 2
    for q in (0.1, 0.5, 0.9):
        assert abs((share < q).to(d.dtype).mean() - q) < 0.012
    assert d.min() >= 0.2 and d.max() <= 5


def _seen(net, x, y):
    from flattrain.core.functional import see

    return see(net, cross_entropy, x, y, layers=("head",))


def test_batches_combine_and_other_layers_are_refused():
    net, (x, y) = oracles.small_net(), oracles.data(n=17)
    for of in PLAIN:
        for change in CHANGES:
            width = net.head.in_features
            one_batch_is_many(changed_basis(of=of, change=change), net, x, y, noise=noise_of(change, width))
    with pytest.raises(Refused, match="no layer 'hed'"):
        value_of(changed_basis(layer="hed"), net, cross_entropy, x, y)
    sequence = nn.Sequential(OrderedDict(head=nn.Linear(4, 3)))
    with pytest.raises(Refused, match="one row of features per example"):
        value_of(changed_basis(), sequence, cross_entropy, torch.randn(5, 2, 4), torch.zeros(5, 2).long())
