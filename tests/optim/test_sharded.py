"""FSDP2 and tensor parallelism: steps on parts of the parameters are those on the whole."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from parallel import closure_for, data, flat, small_net
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.nn import functional as F

from flattrain import optim
from flattrain.optim.sharded import length
from flattrain.ranges import Refused

# All that flattrain.optim has, with a value that is not the default's where there is a knob.
KNOBS = {
    "GSAM": {"alpha": 0.4},
    "WSAM": {"gamma": 0.7},
    "LookSAM": {"every": 2},
    "FriendlySAM": {"sigma": 0.5},
}
MEMBERS = sorted(
    name
    for name, kind in vars(optim).items()
    if isinstance(kind, type)
    and issubclass(kind, optim.TwoPassOptimizer)
    and kind is not optim.TwoPassOptimizer
)
SGD = (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9})
ADAMW = (torch.optim.AdamW, {"lr": 0.01})


def shard(net):
    mesh = init_device_mesh("cpu", (2,))
    for layer in net:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    return fully_shard(net, mesh=mesh)


def made(net, name, base=SGD):
    kind, settings = base
    return getattr(optim, name)(net.named_parameters(), kind, rho=0.2, **settings, **KNOBS.get(name, {}))


def whole(net):
    return torch.cat([p.full_tensor().detach().flatten() for p in net.parameters()])


def sharded_against_whole(rank, name, base):
    net, other = shard(small_net()), small_net()
    optimizer, reference = made(net, name, base), made(other, name, base)
    state = None
    for step in range(6):
        if step == 3:
            state = copy.deepcopy(optimizer.state_dict())
            weights = copy.deepcopy(net.state_dict())
        loss = optimizer.step(closure_for(net, *data(rank, step)))
        reference.step(closure_for(other, *data(None, step)))
        assert torch.isfinite(loss)
    torch.testing.assert_close(whole(net), flat(other), rtol=1e-10, atol=1e-10)

    again = shard(small_net())
    again.load_state_dict(weights)
    resumed = made(again, name, base)
    resumed.load_state_dict(state)
    for step in range(3, 6):
        resumed.step(closure_for(again, *data(rank, step)))
    assert torch.equal(whole(again), whole(net))


@pytest.mark.parametrize("name", MEMBERS)
def test_a_step_on_shards_is_the_step_on_the_whole(ranks, name):
    ranks(sharded_against_whole, name, SGD)


def test_a_step_on_shards_with_another_base(ranks):
    ranks(sharded_against_whole, "SAM", ADAMW)
    ranks(sharded_against_whole, "ASAM", (torch.optim.AdamW, {"lr": 0.01, "foreach": True}))


def infinite(rank, bad_pass):
    net = shard(small_net())
    optimizer = made(net, "SAM")
    optimizer.step(closure_for(net, *data(rank, 0)))
    before, calls = whole(net), []

    def closure():
        calls.append(1)
        loss = F.cross_entropy(net(data(rank, 1)[0]), data(rank, 1)[1])
        (loss * (math.inf if rank == 0 and len(calls) == bad_pass else 1.0)).backward()

    optimizer.step(closure)
    assert torch.equal(whole(net), before) and len(calls) == bad_pass
    optimizer.step(closure)
    assert torch.isfinite(whole(net)).all() and not torch.equal(whole(net), before)


@pytest.mark.parametrize("bad_pass", [1, 2])
def test_an_infinity_skips_the_step_on_all_shards(ranks, bad_pass):
    ranks(infinite, bad_pass)


def through_torchs_checkpoint(rank, base):
    """get_ and set_optimizer_state_dict, which ask a new optimizer for a step with gradients of zero."""
    net = shard(small_net())
    optimizer = made(net, "SAM", base)
    for step in range(2):
        optimizer.step(closure_for(net, *data(rank, step)))
    saved = get_optimizer_state_dict(net, optimizer, options=StateDictOptions(full_state_dict=True))
    saved, weights = copy.deepcopy(saved), copy.deepcopy(net.state_dict())
    again = shard(small_net())
    again.load_state_dict(weights)
    resumed = made(again, "SAM", base)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_optimizer_state_dict(again, resumed, saved if rank == 0 else {}, options=options)
    assert torch.equal(whole(again), whole(net))
    for one, its in ((net, optimizer), (again, resumed)):
        its.step(closure_for(one, *data(rank, 3)))
    assert torch.equal(whole(again), whole(net))


@pytest.mark.parametrize("base", [SGD, ADAMW], ids=["sgd", "adamw"])
def test_torchs_distributed_checkpoint(ranks, base):
    ranks(through_torchs_checkpoint, base)


def not_averaged(rank):
    net = shard(small_net())
    net.set_requires_gradient_sync(False)
    with pytest.raises(Refused, match=r"left no gradient; .* FSDP must average every pass"):
        made(net, "SAM").backward(closure_for(net, *data(rank, 0)))


def test_accumulation_without_averaging_is_refused(ranks):
    ranks(not_averaged)


def in_half_precision(rank):
    net = shard(small_net().float())
    optimizer = made(net, "SAM", ADAMW)
    x = torch.randn(24, 5).float()
    y = x[:, :3].argmax(1)

    def closure():
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(net(x), y)
        loss.backward()
        return loss.detach()

    losses = [float(optimizer.step(closure)) for _ in range(40)]
    return losses[-1] / losses[0]


def test_shards_train_in_half_precision(ranks):
    assert max(ranks(in_half_precision)) < 0.7


def tensor_parallel(rank):
    """The first layer cut in two, the last whole on both processes; both see the same data."""
    net, other = small_net(), small_net()
    mesh = init_device_mesh("cpu", (2,))
    parallelize_module(net[0], mesh, ColwiseParallel(output_layouts=Replicate()))
    wanted = torch.tensor(2.0 * math.sqrt(sum(p.numel() for p in other.parameters())))
    torch.testing.assert_close(length([torch.full_like(p, 2.0) for p in net.parameters()]), wanted)
    optimizer, reference = made(net, "SAM"), made(other, "SAM")
    for step in range(3):
        optimizer.step(closure_for(net, *data(0, step)))
        reference.step(closure_for(other, *data(0, step)))
    found = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in net.parameters()]
    for p, q in zip(found, other.parameters(), strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-10, atol=1e-10)


def test_parts_and_wholes_together(ranks):
    ranks(tensor_parallel)
