"""Costs of steps: the ratio on a clock of our own, and that each way takes the gradient it is named after."""

from __future__ import annotations

import math

import oracles
import pytest
import torch

from flattrain.core.losses import cross_entropy
from flattrain.lab.measuring import estimate
from flattrain.measures.relative_flatness import relative_flatness
from flattrain.measures.relative_flatness_variants import published_fam
from flattrain.problems.split import Split
from flattrain.ranges import Refused
from flattrain.training import step_cost as module_under_test
from flattrain.training.objective import Penalty, build
from flattrain.training.ranks import ALONE
from flattrain.training.step_cost import RHO, WEIGHT, cost, gradient_of, step_cost
from flattrain.types import Batch, Network, Timing


class Clock:
    """Stands still but for the work that is done; the machine is `slow` in some rounds."""

    def __init__(self):
        self.now, self.order = 0.0, []

    def __call__(self):
        return self.now

    def work(self, name, seconds):
        def do():
            self.order.append(name)
            self.now += seconds(len(self.order))

        return do


def test_a_cost_is_the_median_ratio_and_a_slow_machine_does_not_change_it():
    clock = Clock()
    slow = lambda k: 10.0 if (k - 1) // 2 % 3 == 0 else 1.0  # noqa: E731  (both works of every third round)
    found = cost(clock.work("a", lambda k: 2 * slow(k)), clock.work("b", slow), 9, clock)
    assert found.value == pytest.approx(2) and found.standard_error == pytest.approx(0)
    assert clock.order[:4] == ["b", "a", "a", "b"] and len(clock.order) == 2 * (9 + 3)


def test_its_standard_error_is_that_of_a_median():
    generator, clock = torch.Generator().manual_seed(0), Clock()
    noise = 1 + 0.1 * torch.randn(4100, generator=generator)
    found = cost(clock.work("a", lambda k: float(noise[k])), clock.work("b", lambda k: 1.0), 2000, clock)
    assert found.standard_error == pytest.approx(0.1 * math.sqrt(math.pi / 2 / 2000), rel=0.1)
    one = cost(clock.work("a", lambda k: 3.0), clock.work("b", lambda k: 1.0), 1, clock)
    assert one.value == 3 and math.isnan(one.standard_error)


def network():
    net, (x, y) = oracles.small_net(sizes=(4, 6, 3)), oracles.data(n=12)
    return Network(net, cross_entropy, {k: p.detach() for k, p in net.named_parameters()}, {}), x, y


def wanted(network, batch, *penalties):
    objective = build(network.module, network.criterion, [Penalty(p, WEIGHT) for p in penalties])
    return objective.gradient()(network.params, batch)[0]


def test_each_way_takes_its_own_gradient():
    net, x, y = network()
    batch = Batch(x, y)
    plain = wanted(net, batch)
    size = torch.stack([g.square().sum() for g in plain.values()]).sum().sqrt()
    ahead = net._replace(params={k: p + RHO * plain[k] / size for k, p in net.params.items()})
    gradients = {
        "plain": plain,
        "head": wanted(net, batch, relative_flatness(layer="head", form="head")),
        "sam": wanted(ahead, batch),
        "released": wanted(net, batch, published_fam(layer="head")),
    }
    for way, number in gradients.items():
        found, _ = gradient_of(net, way, "head")(net.params, batch)
        for k in plain:
            torch.testing.assert_close(found[k], number[k], rtol=1e-9, atol=1e-12)
        assert way == "plain" or any(not torch.allclose(found[k], plain[k], rtol=1e-6) for k in plain)
    probed, _ = gradient_of(net, "probe", "head")(net.params, batch)
    assert any(not torch.allclose(probed[k], plain[k], rtol=1e-6) for k in plain)


def test_the_laboratory_times_steps_on_training_examples_and_says_that_it_is_a_timing(monkeypatch):
    net, x, y = network()
    seen = []
    step = module_under_test._step
    monkeypatch.setattr(
        module_under_test,
        "_step",
        lambda g, params, batch: seen.append(len(batch.y)) or step(g, params, batch),
    )
    timing = step_cost(of="sam", batch=8, repeats=2)
    assert isinstance(timing, Timing) and "not the same in another run" in timing.definition
    found = estimate(timing, net, Split(x, y, x[:3], y[:3], 3), "cost", (0, 0), ALONE)
    assert found.value > 0 and math.isfinite(found.standard_error) and seen == [8, 8]
    with pytest.raises(Refused, match="no layer 'hed'"):
        step_cost(of="head", layer="hed", repeats=1).ratio(net, x, y)
    far = x.to("meta")
    with pytest.raises(Refused, match="processor time"):
        step_cost(repeats=1).ratio(net, far, y)
    wide = oracles.small_net(sizes=(4, 2, 3))
    params = {k: p.detach() for k, p in wide.named_parameters()}
    with pytest.raises(Refused, match="no more rows than columns"):
        step_cost(of="released", repeats=1).ratio(Network(wide, cross_entropy, params, {}), x, y)
