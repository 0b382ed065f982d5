"""Two processes, one model in DistributedDataParallel: whose gradient is ascended, and that none drifts."""

from __future__ import annotations

import contextlib
import math

import pytest
import torch
from parallel import BASES, STEPS, agreed, alone, closure_for, data, flat, small_net
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from flattrain import optim
from flattrain.ranges import Refused


def train(rank, base, perturbation, bucket_view):
    net = DistributedDataParallel(small_net(), gradient_as_bucket_view=bucket_view)
    local = {"perturbation": "local", "ddp": net} if perturbation == "local" else {}
    optimizer = BASES[base](net.parameters(), rho=0.3, **local)
    moves = []
    for step in range(STEPS):
        calls = []
        closure = closure_for(net, *data(rank, step))
        at = flat(net)

        def watched(calls=calls, closure=closure, at=at):
            calls.append(1)
            if len(calls) == 2:
                moves.append(flat(net) - at)
            return closure()

        optimizer.step(watched)
    return agreed(net), moves[0]


@pytest.mark.parametrize("bucket_view", [False, True])
@pytest.mark.parametrize("base", BASES)
def test_a_global_perturbation_is_that_of_one_process_on_all_data(ranks, base, bucket_view):
    (weights, one), (_, other) = ranks(train, base, "global", bucket_view)
    assert torch.equal(one, other)
    torch.testing.assert_close(weights, alone(base), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("base", ["sgd", "adamw"])
def test_a_local_perturbation_is_along_each_processes_own_gradient(ranks, base):
    (weights, one), (_, other) = ranks(train, base, "local", False)
    assert float((one - other).norm()) > 0.1
    for rank, move in enumerate((one, other)):
        net = small_net()
        closure_for(net, *data(rank, 0))()
        g = torch.cat([p.grad.flatten() for p in net.parameters()])
        torch.testing.assert_close(move, 0.3 * g / g.norm(), rtol=1e-10, atol=1e-12)
    assert float((weights - alone(base)).abs().max()) > 1e-4


def poisoned(rank, perturbation, bad_pass):
    """Steps of which the second has an infinite loss on process 1, in one of its passes."""
    net = DistributedDataParallel(small_net())
    local = {"perturbation": "local", "ddp": net} if perturbation == "local" else {}
    optimizer = BASES["sgd"](net.parameters(), rho=0.3, **local)
    optimizer.step(closure_for(net, *data(rank, 0)))
    before, calls = flat(net), []
    x, y = data(rank, 1)

    def closure():
        calls.append(1)
        loss = F.cross_entropy(net(x), y)
        (loss * (math.inf if rank == 1 and len(calls) == bad_pass else 1.0)).backward()
        return loss

    optimizer.step(closure)
    assert torch.equal(flat(net), before)
    optimizer.step(closure_for(net, *data(rank, 2)))
    assert not torch.equal(agreed(net), before)
    return len(calls)


@pytest.mark.parametrize("bad_pass", [1, 2])
@pytest.mark.parametrize("perturbation", ["global", "local"])
def test_an_infinity_in_one_process_skips_the_step_in_all_and_hangs_none(ranks, perturbation, bad_pass):
    assert ranks(poisoned, perturbation, bad_pass) == [bad_pass, bad_pass]


def accumulate(rank, way, perturbation):
    net = DistributedDataParallel(small_net(), gradient_as_bucket_view=True)
    local = {"perturbation": "local", "ddp": net} if perturbation == "local" else {}
    optimizer = BASES["sgd"](net.parameters(), rho=0.3, **local)
    for step in range(STEPS):
        optimizer.zero_grad()
        x, y = data(rank, step)
        parts = list(zip(x.split(2), y.split(2), strict=True))
        if way == "backward":
            for part in parts:
                optimizer.backward(closure_for(net, *part))
            for p in net.parameters():
                p.grad /= len(parts)
            optimizer.step()
            continue

        def closure(parts=parts):
            for k, (xs, ys) in enumerate(parts):
                with net.no_sync() if k + 1 < len(parts) else contextlib.nullcontext():
                    (F.cross_entropy(net(xs), ys) / len(parts)).backward()

        optimizer.step(closure)
    return agreed(net)


def test_accumulation(ranks):
    torch.testing.assert_close(
        ranks(accumulate, "closure", "global")[0], alone("sgd"), rtol=1e-10, atol=1e-10
    )
    net = small_net()
    optimizer = BASES["sgd"](net.parameters(), rho=0.3)
    for step in range(STEPS):
        optimizer.zero_grad()
        (x, y), (u, v) = data(0, step), data(1, step)
        for k in (0, 2, 4):
            part = torch.cat([x[k : k + 2], u[k : k + 2]]), torch.cat([y[k : k + 2], v[k : k + 2]])
            optimizer.backward(closure_for(net, *part))
        for p in net.parameters():
            p.grad /= 3
        optimizer.step()
    torch.testing.assert_close(ranks(accumulate, "backward", "global")[0], flat(net), rtol=1e-10, atol=1e-10)
    ranks(accumulate, "backward", "local")


def without_averaging(rank, perturbation):
    net = DistributedDataParallel(small_net())
    local = {"perturbation": "local", "ddp": net} if perturbation == "local" else {}
    optimizer = BASES["sgd"](net.parameters(), rho=0.3, **local)
    with (
        net.no_sync(),
        pytest.raises(Refused, match=r"under no_sync\(\) would let the processes drift apart"),
    ):
        optimizer.backward(closure_for(net, *data(rank, 0)))
    optimizer.step(closure_for(net, *data(rank, 0)))
    agreed(net)


def test_accumulation_without_averaging_is_refused(ranks):
    ranks(without_averaging, "global")
    ranks(without_averaging, "local")


def unused_here(rank):
    """A branch that only process 0 runs; it alone may ascend."""
    torch.manual_seed(0)
    net = nn.ModuleDict({"all": nn.Linear(5, 3), "some": nn.Linear(5, 3)})
    branch = rank == 0
    net.forward = lambda x: net["some"](x) if branch else net["all"](x)
    ddp = DistributedDataParallel(net, find_unused_parameters=True)
    groups = [{"params": net["all"].parameters(), "rho": 0.0}, {"params": net["some"].parameters()}]
    optimizer = optim.SAM(groups, torch.optim.SGD, rho=0.3, lr=0.1, perturbation="local", ddp=ddp)
    for step in range(STEPS):
        optimizer.step(closure_for(ddp, *data(rank, step)))
    before = agreed(ddp)
    for group in optimizer.param_groups:
        group["rho"] = 0.0  # then one pass, which is averaged
    optimizer.step(closure_for(ddp, *data(rank, 0)))
    assert not torch.equal(agreed(ddp), before)


def test_processes_that_use_other_parameters_wait_for_one_another(ranks):
    ranks(unused_here)
