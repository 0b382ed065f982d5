"""Confidence, label smoothing, noisy features and the norm of a layer: by hand, and torch's own."""

from __future__ import annotations

import math

import oracles
import pytest
import torch
from laws import gradient_is_that_of, one_batch_is_many, value_of, vmap_is_loop
from torch.func import functional_call
from torch.nn import functional as F

from flattrain.core.functional import see
from flattrain.core.losses import cross_entropy, squared_error
from flattrain.core.probes import draw, stream
from flattrain.measures.confidence import gini_confidence, negative_entropy
from flattrain.measures.feature_noise import feature_noise
from flattrain.measures.label_smoothing import label_smoothing
from flattrain.measures.norms import weight_norm
from flattrain.ranges import Refused


def probabilities(net, x, params):
    z = functional_call(net, params, (x,))
    return z.exp() / z.exp().sum(1, keepdim=True)


def test_entropy_and_gini_are_those_of_the_distribution():
    net, (x, y) = oracles.small_net(), oracles.data()

    def entropy(p):
        return -torch.distributions.Categorical(probabilities(net, x, p)).entropy().mean()

    gradient_is_that_of(entropy, negative_entropy(), net, x, y)
    gradient_is_that_of(
        lambda p: sum((row * row).sum() for row in probabilities(net, x, p)) / len(x),
        gini_confidence(),
        net,
        x,
        y,
    )
    for p in net.parameters():
        p.data.zero_()
    assert float(value_of(negative_entropy(), net, cross_entropy, x, y)) == pytest.approx(-math.log(3))
    assert float(value_of(gini_confidence(), net, cross_entropy, x, y)) == pytest.approx(1 / 3)


def test_label_smoothing_is_torchs():
    net, (x, y) = oracles.small_net(), oracles.data()

    def smoothed(p):
        z = functional_call(net, p, (x,))
        return (F.cross_entropy(z, y, label_smoothing=0.3) - F.cross_entropy(z, y)) / 0.3

    gradient_is_that_of(smoothed, label_smoothing(), net, x, y)


@pytest.mark.parametrize("measure", [negative_entropy(), gini_confidence(), label_smoothing()])
def test_laws_of_confidence(measure):
    net, (x, y) = oracles.small_net(), oracles.data()
    one_batch_is_many(measure, net, x, y)
    vmap_is_loop(measure, net, x, y)
    with pytest.raises(Refused, match="softmax classifier"):
        value_of(measure, oracles.small_net(sizes=(4, 3, 1)), squared_error, x, y.double()[:, None])


@pytest.mark.parametrize("layer", ["hidden2", "head"])
def test_feature_noise_is_the_loss_of_noisy_features(layer):
    net, (x, y) = oracles.small_net("tanh", (4, 4, 4, 3)), oracles.data()
    epsilon = torch.randn(2, len(x), 4, generator=torch.Generator().manual_seed(5))

    def by_hand(params):
        gains = []
        for e in (*epsilon, None):
            features = x
            for name, part in net.named_children():
                if name == layer and e is not None:
                    lengths = torch.stack([row.norm() for row in features])
                    features = features + 0.2 * lengths[:, None] * e
                own = {k.split(".")[1]: p for k, p in params.items() if k.startswith(f"{name}.")}
                features = functional_call(part, own, (features,))
            gains.append(F.cross_entropy(features, y))
        return (gains[0] + gains[1]) / 2 - gains[2]

    noise = {"0": epsilon[0], "1": epsilon[1]}
    measure = feature_noise(layer=layer, sigma=0.2, probes=2)
    gradient_is_that_of(by_hand, measure, net, x, y, noise=noise)
    vmap_is_loop(measure, net, x, y)


def test_feature_noise_is_relative_flatness_to_second_order():
    net, (x, y) = oracles.small_net("tanh", (4, 5, 3)), oracles.data()
    kappa = oracles.kappa(net, oracles.full_hessian(net, F.cross_entropy, x, y), "head")
    seen = see(net, cross_entropy, x, y, layers=("head",))
    sigma = 0.01
    measure = feature_noise(sigma=sigma, probes=800)
    noise = draw(measure.draws(seen), stream(1), x.dtype)
    mirrored = {k: -e for k, e in noise.items()}  # without the first order, which hides the second
    with torch.no_grad():
        alone = measure.reduce(measure.statistic(seen, noise))
        both = measure.statistic(seen, noise)["gain"] + measure.statistic(seen, mirrored)["gain"]
    error = both.std() / len(both) ** 0.5
    assert abs(both.mean() - sigma**2 * kappa) < 4 * error < 0.1 * sigma**2 * kappa
    assert abs(alone.value - sigma**2 / 2 * kappa) < 4 * alone.standard_error


def test_the_norm_of_a_layer():
    net, (x, y) = oracles.small_net(), oracles.data()
    gradient_is_that_of(
        lambda p: (p["head.weight"] ** 2).sum() + (p["head.bias"] ** 2).sum(),
        weight_norm(layer="head"),
        net,
        x,
        y,
    )
    with pytest.raises(Refused, match="no trainable parameter of a layer 'heda'"):
        value_of(weight_norm(layer="heda"), net, cross_entropy, x, y)
