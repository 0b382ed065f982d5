"""A schedule of ρ: its values, its cost, its way through a checkpoint."""

from __future__ import annotations

import copy

import oracles
import pytest
import torch
from stepping import closure_for, same, weights

from flattrain.optim import SAM, RhoSchedule
from flattrain.ranges import Refused


def test_rho_follows_the_share_and_nothing_costs_one_pass():
    net, (x, y) = oracles.small_net(), oracles.data()
    groups = [{"params": net.hidden1.parameters(), "rho": 0.4}, {"params": net.head.parameters()}]
    optimizer = SAM(groups, torch.optim.SGD, rho=0.1, lr=0.1)
    late = RhoSchedule(optimizer, lambda t: 0.0 if t < 2 else 0.5)
    calls = []

    def closure():
        calls.append(1)
        return closure_for(net, x, y)()

    passes = []
    for _ in range(3):
        before = len(calls)
        optimizer.step(closure)
        passes.append(len(calls) - before)
        late.step()
    assert passes == [1, 1, 2]
    assert [g["rho"] for g in optimizer.param_groups] == [0.2, 0.05]


def test_a_schedule_goes_on_where_it_stopped():
    (x, y), nets = oracles.data(), [oracles.small_net(), oracles.small_net()]

    def fresh(net):
        optimizer = SAM(net.parameters(), torch.optim.SGD, rho=0.3, lr=0.1, momentum=0.9)
        return optimizer, RhoSchedule(optimizer, lambda t: 1 / (1 + t))

    optimizer, schedule = fresh(nets[0])
    for step in range(6):
        if step == 3:
            nets[1].load_state_dict(nets[0].state_dict())
            resumed, again = fresh(nets[1])
            resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            again.load_state_dict(schedule.state_dict())
        optimizer.step(closure_for(nets[0], x, y))
        schedule.step()
    for _ in range(3):
        resumed.step(closure_for(nets[1], x, y))
        again.step()
    assert same(weights(nets[0]), weights(nets[1]))


def test_refusals():
    net = oracles.small_net()
    with pytest.raises(Refused, match="SGD has no rho"):
        RhoSchedule(torch.optim.SGD(net.parameters(), lr=0.1), lambda t: 1.0)
    optimizer = SAM(net.parameters(), torch.optim.SGD, lr=0.1)
    with pytest.raises(Refused, match=r"share\(0\) must be a number >= 0, got -1"):
        RhoSchedule(optimizer, lambda t: -1)
