"""What goes wrong around optimizers of two passes: infinities, absent gradients, buffers, half precision."""

from __future__ import annotations

import copy
import math

import oracles
import pytest
import torch
from stepping import BASES, close, closure_for, same, weights
from torch import nn
from torch.nn import functional as F

from flattrain.optim import SAM
from flattrain.ranges import Refused


@pytest.mark.parametrize("passes", [(1,), (2,), (1, 2)])
@pytest.mark.parametrize("way", ["closure", "by hand"])
def test_a_gradient_that_is_not_finite_skips_the_step(way, passes):
    net, (x, y) = oracles.small_net(), oracles.data()
    optimizer = SAM(net.parameters(), torch.optim.SGD, rho=0.3, lr=0.1, momentum=0.9)
    good = closure_for(net, x, y)
    optimizer.step(good)
    before, momentum = weights(net), copy.deepcopy(optimizer.state_dict()["state"])
    calls = []

    def poisoned():
        loss = good()
        calls.append(1)
        if len(calls) in passes:
            net.head.weight.grad[0, 0] = math.inf
        return loss

    if way == "closure":
        optimizer.step(poisoned)
    else:
        optimizer.zero_grad()
        poisoned()
        if optimizer.ascend():
            poisoned()
        optimizer.descend()
    assert same(weights(net), before)
    after = optimizer.state_dict()["state"]
    assert all(torch.equal(after[k]["momentum_buffer"], momentum[k]["momentum_buffer"]) for k in after)
    optimizer.step(good)
    assert not same(weights(net), before) and all(torch.isfinite(p).all() for p in net.parameters())


class Stochastic(nn.Module):
    """A branch that is left out in some calls: its gradient is then None."""

    def __init__(self):
        super().__init__()
        self.always, self.branch = nn.Linear(4, 3), nn.Linear(4, 3)
        self.out: tuple[bool, ...] = ()
        self.calls = 0

    def forward(self, x):
        left_out = self.out[self.calls % 2]
        self.calls += 1
        return self.always(x) if left_out else self.always(x) + self.branch(x)


@pytest.mark.parametrize("left_out", [(False, True), (True, False), (True, True)])
def test_parameters_without_gradient_in_either_pass_come_back(left_out):
    net, x, y = Stochastic(), torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    net.out = left_out
    optimizer = SAM(net.parameters(), torch.optim.SGD, rho=0.5, lr=0.0)
    before = weights(net)
    optimizer.step(closure_for(net, x, y))
    assert net.calls == 2 and same(weights(net), before)
    for p in net.branch.parameters():
        assert (p.grad is None) == left_out[1]


def test_frozen_parameters_stay_and_have_no_part_in_the_ascent():
    net, (x, y) = oracles.small_net(), oracles.data()
    net.hidden1.requires_grad_(False)
    frozen = weights(net.hidden1)
    optimizer = SAM(net.parameters(), torch.optim.SGD, rho=0.5, lr=0.1)
    other = oracles.small_net()
    other.hidden1.requires_grad_(False)
    live = [p for p in other.parameters() if p.requires_grad]
    alone = SAM(live, torch.optim.SGD, rho=0.5, lr=0.1)
    optimizer.step(closure_for(net, x, y))
    alone.step(closure_for(other, x, y))
    assert same(weights(net.hidden1), frozen) and same(weights(net), weights(other))


def test_batch_norm_moves_as_in_one_forward_pass():
    def fresh():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))

    net, plain, x = fresh(), fresh(), torch.randn(8, 4)
    y = torch.randint(3, (8,))
    SAM(net.parameters(), torch.optim.SGD, rho=0.5, lr=0.1).step(closure_for(net, x, y))
    plain(x)
    for name, buffer in plain.named_buffers():
        assert torch.equal(dict(net.named_buffers())[name], buffer), name
    assert not same(weights(net), weights(plain))
    net.eval()
    frozen = {k: b.clone() for k, b in net.named_buffers()}
    SAM(net.parameters(), torch.optim.SGD, rho=0.5, lr=0.1).step(closure_for(net, x, y))
    assert all(torch.equal(b, frozen[k]) for k, b in net.named_buffers())


def test_statistics_move_again_after_the_step():
    net, x = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3)), torch.randn(8, 4)
    SAM(net.parameters(), torch.optim.SGD, rho=0.5, lr=0.1).step(closure_for(net, x, torch.randint(3, (8,))))
    net(x)
    assert int(net[0].num_batches_tracked) == 2


def test_both_passes_see_the_same_dropout_and_the_next_step_another():
    masks = []

    class Watch(nn.Module):
        def forward(self, x):
            masks.append(x.detach() == 0)
            return x

    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(4, 50), nn.Dropout(0.5), Watch(), nn.Linear(50, 3))
    optimizer = SAM(net.parameters(), torch.optim.SGD, rho=0.5, lr=0.1)
    for _ in range(2):
        optimizer.step(closure_for(net, torch.ones(8, 4), torch.randint(3, (8,))))
    assert torch.equal(masks[0], masks[1]) and torch.equal(masks[2], masks[3])
    assert not torch.equal(masks[0], masks[2])


@pytest.mark.parametrize("name", BASES)
def test_accumulation_over_micro_batches_is_the_whole_batch(name):
    (base, settings), (x, y) = BASES[name], oracles.data()
    one, two = oracles.small_net(), oracles.small_net()
    a, b = SAM(one.parameters(), base, rho=0.2, **settings), SAM(two.parameters(), base, rho=0.2, **settings)

    def accumulated():
        total = 0.0
        for part in torch.split(torch.arange(12), 3):
            loss = F.cross_entropy(one(x[part]), y[part]) / 4
            loss.backward()
            total = total + loss.detach()
        return total

    for _ in range(3):
        loss = a.step(accumulated)
        torch.testing.assert_close(loss, b.step(closure_for(two, x, y)).detach(), rtol=1e-12, atol=0)
    close(weights(one), weights(two), 1e-6 if name != "sgd" else 1e-10)


def test_backward_adds_to_the_gradient_like_a_losss_own():
    net, (x, y) = oracles.small_net(), oracles.data()
    optimizer = SAM(net.parameters(), torch.optim.SGD, rho=0.2, lr=0.1)
    found = []
    for part in (slice(0, 6), slice(6, 12)):
        optimizer.zero_grad()
        optimizer.backward(closure_for(net, x[part], y[part]))
        found.append([p.grad.clone() for p in net.parameters()])
    optimizer.zero_grad()
    for part in (slice(0, 6), slice(6, 12)):
        optimizer.backward(closure_for(net, x[part], y[part]))
    close([p.grad for p in net.parameters()], [a + b for a, b in zip(*found, strict=True)], 1e-14)


def test_a_step_does_not_throw_away_what_was_accumulated():
    net, (x, y) = oracles.small_net(), oracles.data()
    optimizer = SAM(net.parameters(), torch.optim.SGD, rho=0.2, lr=0.1)
    closure = closure_for(net, x, y)
    for _ in range(2):  # gradients that a step has used may be left where they are
        optimizer.step(closure)
    optimizer.zero_grad(set_to_none=False)
    optimizer.step(closure)
    optimizer.zero_grad()
    closure()  # as frameworks do, which accumulate over micro-batches and give the last one to step
    with pytest.raises(Refused, match=r"would throw away gradients of an earlier backward"):
        optimizer.step(closure)
    optimizer.zero_grad()
    optimizer.backward(closure)
    with pytest.raises(Refused, match=r"would throw away gradients of an earlier backward"):
        optimizer.step(closure)
    optimizer.step()
    with pytest.raises(Refused, match=r"the closure left no gradient; it must call backward"):
        optimizer.step(lambda: F.cross_entropy(net(x), y))


def test_the_direction_is_that_of_the_groups_that_ascend():
    net, (x, y) = oracles.small_net(), oracles.data()
    groups = [{"params": net.hidden1.parameters(), "rho": 0.0}, {"params": net.head.parameters()}]
    optimizer = SAM(groups, torch.optim.SGD, rho=0.3, lr=0.1)
    before = weights(net.head)
    closure_for(net, x, y)()
    optimizer.ascend()
    moved = torch.cat([(p - q).flatten() for p, q in zip(net.head.parameters(), before, strict=True)])
    assert float(moved.norm()) == pytest.approx(0.3, rel=1e-12)
    optimizer.restore()
    assert same(weights(net.head), before)


def test_sparse_gradients():
    def fresh(sparse):
        torch.manual_seed(0)
        return nn.Sequential(nn.Embedding(9, 4, sparse=sparse), nn.Flatten(), nn.Linear(8, 3))

    x, y = torch.tensor([[0, 1], [1, 5], [7, 7]]), torch.tensor([0, 1, 2])
    one, two = fresh(True), fresh(False)
    for net in (one, two):
        optimizer = SAM(net.parameters(), torch.optim.SGD, rho=0.5, lr=0.1)
        for _ in range(3):
            optimizer.step(closure_for(net, x, y))
    close(weights(one), weights(two), 1e-12)


@pytest.mark.parametrize("infinite", [(), (1,), (2,)])
@pytest.mark.parametrize("way", ["closure", "backward", "by hand"])
def test_gradient_scaler(way, infinite):
    net, plain, (x, y) = oracles.small_net(), oracles.small_net(), oracles.data()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    optimizer = SAM(net.parameters(), torch.optim.SGD, rho=0.2, lr=0.1, momentum=0.9)
    reference = SAM(plain.parameters(), torch.optim.SGD, rho=0.2, lr=0.1, momentum=0.9)
    calls = []

    def closure():
        loss = closure_for(net, x, y, scaler)()
        calls.append(1)
        if len(calls) in infinite:
            net.head.weight.grad[0, 0] = math.inf
        return loss

    before = weights(net)
    for number in range(3):
        if way == "closure":
            optimizer.step(closure, scaler=scaler)
        else:
            optimizer.zero_grad()
            if way == "backward":
                optimizer.backward(closure, scaler=scaler)
            else:
                closure()
                if optimizer.ascend(scaler=scaler):
                    closure()
                optimizer.restore()
            scaler.step(optimizer)
        scaler.update()
        if infinite and number == 0:
            assert same(weights(net), before) and scaler.get_scale() == 2.0**7
        else:
            reference.step(closure_for(plain, x, y))
    assert scaler.get_scale() == 2.0 ** (7 if infinite else 8)
    close(weights(net), weights(plain), 1e-12)


def test_autocast_in_half_precision():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 3)).float()
    x, y = torch.randn(32, 4).float(), torch.randint(3, (32,))
    optimizer = SAM(net.parameters(), torch.optim.AdamW, rho=0.05, lr=0.05)

    def closure():
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(net(x), y)
        loss.backward()
        return loss

    losses = [float(optimizer.step(closure)) for _ in range(30)]
    assert losses[-1] < 0.6 * losses[0]
    half = nn.Linear(4, 3).bfloat16()
    closure = closure_for(half, x.bfloat16(), y)
    before = weights(half)
    SAM(half.parameters(), torch.optim.SGD, rho=0.05, lr=0.1).step(closure)
    assert not same(before, weights(half)) and half.weight.dtype == torch.bfloat16


def test_calls_out_of_order_are_refused():
    net, (x, y) = oracles.small_net(), oracles.data()
    optimizer = SAM(net.parameters(), torch.optim.SGD, rho=0.3, lr=0.1)
    with pytest.raises(Refused, match=r"descend and restore come after ascend"):
        optimizer.descend()
    closure_for(net, x, y)()
    optimizer.ascend()
    with pytest.raises(Refused, match="ascend was called twice"):
        optimizer.ascend()
    with pytest.raises(Refused, match="no gradient of two passes"):
        optimizer.step()
    with pytest.raises(Refused, match="must be an optimizer class that steps without a closure"):
        SAM(net.parameters(), torch.optim.LBFGS)
    with pytest.raises(Refused, match="needs ddp="):
        SAM(net.parameters(), torch.optim.SGD, lr=0.1, perturbation="local")
    with pytest.raises(Refused, match="'global' or 'local', got 'both'"):
        SAM(net.parameters(), torch.optim.SGD, lr=0.1, perturbation="both")
