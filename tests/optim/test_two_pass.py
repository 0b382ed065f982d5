"""The optimizers of two passes against their formula and against the contract of torch's optimizers."""

from __future__ import annotations

import copy

import oracles
import pytest
import torch
from stepping import BASES, closure_for, same, weights
from torch import nn
from torch.nn import functional as F

from flattrain.optim import SAM, USAM
from flattrain.ranges import Refused


def test_optimizer_step_is_the_formula():
    net, (x, y) = oracles.small_net(), oracles.data()
    value, at = oracles.loss_of_vector(net, F.cross_entropy, x, y)
    g = torch.func.grad(value)(at)
    wanted = at - 0.1 * torch.func.grad(value)(at + 0.2 * g / g.norm())
    optimizer = SAM(net.parameters(), torch.optim.SGD, rho=0.2, lr=0.1)
    loss = optimizer.step(closure_for(net, x, y))
    torch.testing.assert_close(oracles.flat(dict(net.named_parameters())), wanted)
    torch.testing.assert_close(loss.detach(), value(at))
    net = oracles.small_net()
    USAM(net.parameters(), torch.optim.SGD, rho=0.2, lr=0.1).step(closure_for(net, x, y))
    wanted = at - 0.1 * torch.func.grad(value)(at + 0.2 * g)
    torch.testing.assert_close(oracles.flat(dict(net.named_parameters())), wanted)


@pytest.mark.parametrize("name", BASES)
def test_rho_zero_is_the_base_optimizer(name):
    (base, settings), (x, y) = BASES[name], oracles.data()
    one, two = oracles.small_net(), oracles.small_net()
    a, b = SAM(one.parameters(), base, rho=0.0, **settings), base(two.parameters(), **settings)
    for _ in range(5):
        a.step(closure_for(one, x, y))
        b.zero_grad()
        closure_for(two, x, y)()
        b.step()
    for p, q in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("name", BASES)
def test_resume_is_bit_exact(name, tmp_path):
    (base, settings), (x, y) = BASES[name], oracles.data()

    def fresh():
        net = oracles.small_net()
        return net, SAM(net.parameters(), base, rho=0.1, **settings)

    net, optimizer = fresh()
    for _ in range(4):
        optimizer.step(closure_for(net, x, y))
    torch.save([net.state_dict(), optimizer.state_dict()], tmp_path / "half.pt")
    for _ in range(4):
        optimizer.step(closure_for(net, x, y))

    again, resumed = fresh()
    weights, state = torch.load(tmp_path / "half.pt", weights_only=True)
    again.load_state_dict(weights)
    resumed.load_state_dict(state)
    for _ in range(4):
        resumed.step(closure_for(again, x, y))
    for p, q in zip(net.parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_deep_copy_goes_on_alone():
    net, (x, y) = oracles.small_net(), oracles.data()
    optimizer = SAM(net.parameters(), torch.optim.SGD, rho=0.1, lr=0.1, momentum=0.9)
    optimizer.step(closure_for(net, x, y))
    other_net, other = copy.deepcopy((net, optimizer))
    assert other.base is not optimizer.base and other.param_groups is other.base.param_groups
    optimizer.step(closure_for(net, x, y))
    other.step(closure_for(other_net, x, y))
    for p, q in zip(net.parameters(), other_net.parameters(), strict=True):
        assert p is not q and torch.equal(p, q)


def test_groups_schedulers_and_absent_gradients():
    net, (x, y) = oracles.small_net(), oracles.data()
    spare = nn.Parameter(torch.ones(3))
    optimizer = SAM(
        [
            {"params": net.hidden1.parameters(), "rho": 0.0},
            {"params": [*net.head.parameters(), spare]},
        ],
        torch.optim.SGD,
        rho=0.3,
        lr=0.1,
    )
    assert [g["rho"] for g in optimizer.param_groups] == [0.0, 0.3]
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    before = net.hidden1.weight.detach().clone()
    optimizer.step(closure_for(net, x, y))
    scheduler.step()
    assert optimizer.base.param_groups[0]["lr"] == 0.05
    assert torch.equal(spare, torch.ones(3))
    assert not torch.equal(net.hidden1.weight, before)
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
    assert len(optimizer.base.param_groups) == 3
    assert optimizer.param_groups[2]["rho"] == 0.3


def test_weights_come_back_whatever_happens_in_the_second_pass():
    net, (x, y) = oracles.small_net(), oracles.data()
    optimizer = SAM(net.parameters(), torch.optim.SGD, rho=0.3, lr=0.1)
    before = [p.detach().clone() for p in net.parameters()]
    calls = []

    def failing(poison):
        def closure():
            calls.append(1)
            if len(calls) % 2 == 0 and poison is None:
                raise RuntimeError("second pass")
            loss = closure_for(net, x, y)()
            if len(calls) % 2 == 0:
                net.head.weight.grad[0, 0] = poison
            return loss

        return closure

    with pytest.raises(RuntimeError, match="second pass"):
        optimizer.step(failing(None))
    for poison in (float("inf"), float("nan")):
        optimizer.step(failing(poison))
    for p, q in zip(net.parameters(), before, strict=True):
        assert torch.equal(p, q)
    with pytest.raises(Refused, match=r"no gradient of two passes; use step\(closure\)"):
        optimizer.step()
    with pytest.raises(Refused, match="rho must be a number >= 0"):
        SAM(net.parameters(), torch.optim.SGD, rho=-0.1, lr=0.1)


def test_three_ways_to_take_a_step_are_one():
    found = []
    for way in ("closure", "backward", "by hand"):
        net, (x, y) = oracles.small_net(), oracles.data()
        optimizer = SAM(net.parameters(), torch.optim.AdamW, rho=0.2, lr=0.01)
        closure = closure_for(net, x, y)
        for _ in range(4):
            if way == "closure":
                optimizer.step(closure)
                continue
            optimizer.zero_grad()
            if way == "backward":
                optimizer.backward(closure)
                optimizer.step()
            else:
                closure()
                assert optimizer.ascend()
                closure()
                optimizer.descend()
        found.append(weights(net))
    assert same(found[0], found[1]) and same(found[0], found[2])
