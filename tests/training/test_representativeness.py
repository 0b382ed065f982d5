"""Representativeness against its definition by hand, a closed form, and the identity that it is made for."""

from __future__ import annotations

import math

import oracles
import pytest
import torch
import zoo
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

import flattrain
from flattrain.core.losses import squared_error
from flattrain.core.probes import stream
from flattrain.measures.feature_robustness import feature_robustness, haar
from flattrain.measures.loss import loss
from flattrain.measures.representativeness import representativeness
from flattrain.measures.risk import risk
from flattrain.ranges import Refused

LOSS = nn.CrossEntropyLoss()


def sets(n=12, held=9):
    x, y = oracles.data(n=n + held)
    return [(x[:5], y[:5]), (x[5:n], y[5:n])], [(x[n : n + 2], y[n : n + 2]), (x[n + 2 :], y[n + 2 :])]


def whole(batches):
    return tuple(torch.cat(parts) for parts in zip(*batches, strict=True))


@pytest.mark.parametrize("layer", ["hidden1", "hidden2", "head"])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_gap_is_representativeness_and_feature_robustness(layer, weighted):
    net = oracles.small_net("tanh", (4, 5, 6, 3))
    train, held_out = sets()
    criterion = zoo.class_weights(net, train[0][0]) if weighted else LOSS
    found = flattrain.representativeness(
        net, criterion, train, held_out, layer=layer, delta=0.4, probes=4, seed=3
    )
    robustness = flattrain.measured(
        net, criterion, train, feature_robustness(layer=layer, delta=0.4, probes=4), seed=3
    )
    gap = flattrain.measured(net, criterion, held_out, loss()).value
    gap = gap - flattrain.measured(net, criterion, train, loss()).value
    assert abs(float(robustness.value)) > 1e-3
    assert float(found.value + robustness.value) == pytest.approx(float(gap), abs=1e-14)
    assert found.standard_error > float(robustness.standard_error) > 0


def test_it_is_the_definition_by_hand():
    net = oracles.small_net("tanh", (4, 5, 6, 3))
    train, held_out = sets()
    (x, y), (hx, hy) = whole(train), whole(held_out)
    found = flattrain.representativeness(
        net, LOSS, train, held_out, layer="hidden2", delta=0.4, probes=3, seed=7
    )
    generator = stream(7, "feature_robustness", "probes")
    perturbed = []
    for _ in range(3):
        a = haar(torch.randn(5, 5, generator=generator))
        phi = net.act1(net.hidden1(x))
        both = [net.head(net.act2(net.hidden2(phi + s * 0.4 * phi @ a.T))) for s in (1, -1)]
        perturbed.append(sum(F.cross_entropy(z, y) for z in both) / 2)
    losses = F.cross_entropy(net(hx), hy, reduction="none")
    wanted = losses.mean() - sum(perturbed) / 3
    assert float(found.value) == pytest.approx(float(wanted), abs=1e-13)
    error = (losses.var() / len(losses) + torch.stack(perturbed).var() / 3).sqrt()
    assert found.standard_error == pytest.approx(float(error), rel=1e-10)


def test_of_a_linear_net_under_squared_error():
    """E_A ‖W(φ + δAφ) + b − y‖² = ‖Wφ + b − y‖² + δ² ‖φ‖² ‖W‖²/m, for every δ."""
    torch.manual_seed(0)
    net, delta = nn.Sequential(nn.Linear(6, 2)), 0.7
    x, y = torch.randn(30, 6), torch.randn(30, 2)
    train, held_out = [(x[:20], y[:20])], [(x[20:], y[20:])]

    def mean(part):
        return (net(part[0]) - part[1]).square().sum(1).mean()

    spread = delta**2 * x[:20].square().sum(1).mean() * net[0].weight.square().sum() / 6
    wanted = float(mean(held_out[0]) - mean(train[0]) - spread)
    found = flattrain.representativeness(
        net, squared_error, train, held_out, layer="0", delta=delta, probes=1000
    )
    draws = flattrain.measured(
        net, squared_error, train, feature_robustness(layer="0", delta=delta, probes=1000)
    )
    assert abs(float(found.value) - wanted) < 4 * float(draws.standard_error) < 0.05 * float(spread)


def test_the_error_of_the_risk_is_that_of_a_sample():
    net, _ = oracles.small_net("tanh", (4, 5, 3)), None
    torch.manual_seed(0)
    params = {k: p.detach() for k, p in net.named_parameters()}
    x, y = torch.randn(20000, 4), torch.randint(3, (20000,))
    true = float(F.cross_entropy(functional_call(net, params, (x,)), y))
    inside, errors, values = 0, [], []
    for k in range(200):
        at = slice(100 * k, 100 * k + 100)
        found = flattrain.measured(net, LOSS, [(x[at], y[at])], risk())
        inside += abs(float(found.value) - true) < 2 * float(found.standard_error)
        errors.append(float(found.standard_error))
        values.append(float(found.value))
    assert 180 <= inside <= 200
    assert torch.tensor(values).std() == pytest.approx(sum(errors) / 200, rel=0.15)


def test_the_risk_is_the_loss_with_weights_and_ignored_labels():
    net, x = zoo.build("mlp")
    y = torch.tensor([0, 1, 2, 2, 1, 0, 0])
    for criterion in (LOSS, zoo.class_weights(net, x), nn.CrossEntropyLoss(ignore_index=1)):
        found = flattrain.measured(net, criterion, [(x[:3], y[:3]), (x[3:], y[3:])], risk())
        assert float(found.value) == pytest.approx(float(criterion(net(x), y)), rel=1e-12)
        assert 0 < float(found.standard_error) < 1
    kept = y != 1
    losses = F.cross_entropy(net(x), y, reduction="none")[kept]
    assert float(found.standard_error) == pytest.approx(float(losses.std() / len(losses) ** 0.5), rel=1e-12)


def test_a_mistake_is_named_and_the_model_stays():
    net, (train, held_out) = oracles.small_net(), sets()
    net.train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(Refused, match="no layer 'heed'; did you mean 'head'"):
        flattrain.representativeness(net, LOSS, train, held_out, layer="heed")
    with pytest.raises(Refused, match="delta must be a number > 0"):
        representativeness(delta=0)
    with pytest.raises(Refused, match="no examples"):
        flattrain.representativeness(net, LOSS, train, [], layer="head")
    with pytest.raises(Refused, match="read only once"):
        flattrain.representativeness(net, LOSS, iter(train), held_out, layer="head")
    assert net.training and all(torch.equal(v, net.state_dict()[k]) for k, v in before.items())
    one = flattrain.representativeness(net, LOSS, train, held_out, layer="head", probes=1)
    assert math.isnan(one.standard_error) and math.isfinite(float(one.value))
