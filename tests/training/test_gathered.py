"""Weights that are whole only while an operation reads them: memory, views, a mesh of one piece."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import distribute_tensor
from torch.func import functional_call
from torch.profiler import ProfilerActivity, profile

from flattrain.ranges import Refused
from flattrain.training.gathered import gathered
from flattrain.training.scattered import scattered_gradient

LAYERS, SIZE = 48, 64
WHOLE = SIZE * SIZE * 8  # bytes of one layer's weights


def net():
    torch.manual_seed(0)
    layers = (m for _ in range(LAYERS) for m in (nn.Linear(SIZE, SIZE, bias=False), nn.Tanh()))
    return nn.Sequential(*layers)


def peak(run):
    """The most bytes that the allocator of the CPU had lent during `run`."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        run()
    events = sorted(seen.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    held = most = 0
    for event in events:
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def least(derivative):
    """The smallest peak of some runs: Gloo's threads may let go late of what they have sent."""
    model, x = net(), torch.randn(1, SIZE)
    skeleton = copy.deepcopy(model).to("meta")
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    params = dict(model.named_parameters())

    def run():
        with gathered(params) as whole:
            derivative(functional_call(skeleton, whole, x).square().sum(), whole, params)

    run()
    return min(peak(run) for _ in range(8))


def gradient(loss, whole, params):
    return scattered_gradient([loss], whole, params)


def product(loss, whole, params):
    slopes = scattered_gradient([loss], whole, params, create_graph=True)
    v = [p.detach() for p in params.values()]
    scattered_gradient(list(slopes.values()), whole, params, v)


def a_few_layers_at_a_time(rank):
    shards = LAYERS * WHOLE / 2  # of the gradient, which is what was asked for
    assert shards < least(gradient) < 2 * shards  # all weights at once, without any gradient
    # The gradient's shards are kept besides. The whole of one gradient would be 2 more.
    assert 2 * shards < least(product) < 3 * shards


def test_a_gradient_and_a_product_need_the_whole_weights_of_a_few_layers_only(ranks):
    ranks(a_few_layers_at_a_time)


def views_and_reuse(rank):
    torch.manual_seed(0)
    layer, x = nn.Linear(5, 5, bias=False), torch.randn(3, 5)
    w = layer.weight.detach().clone().requires_grad_()
    fully_shard(layer, mesh=init_device_mesh("cpu", (2,)))

    def f(w):
        turned = w.t()
        kept = turned[1:]
        return (torch.tanh(x @ turned @ w)[:, 1:] @ kept).sum() + (w * w).sum() ** 2

    params, v, u = dict(layer.named_parameters()), torch.randn(5, 5), torch.randn(5, 5)
    split = [distribute_tensor(t, layer.weight.device_mesh, layer.weight.placements) for t in (v, u)]
    with gathered(params) as whole:
        g = scattered_gradient([f(whole["weight"])], whole, params, create_graph=True)["weight"]
        h = scattered_gradient([g], whole, params, split[:1], create_graph=True)["weight"]
        k = scattered_gradient([h], whole, params, split[1:])["weight"]
    # Each process adds the same term, and the sum of both is what is differentiated again.
    (a,) = torch.autograd.grad(2 * f(w), w, create_graph=True)
    (b,) = torch.autograd.grad(a, w, v, create_graph=True)
    (c,) = torch.autograd.grad(b, w, u)
    for found, wanted in ((g, a), (h, b), (k, c)):
        torch.testing.assert_close(found.full_tensor(), wanted)


def test_views_and_weights_used_twice_are_differentiated_thrice(ranks):
    ranks(views_and_reuse)


def one_piece(rank):
    model = nn.Linear(4, 3)
    before = copy.deepcopy(model.state_dict())
    fully_shard(model, mesh=init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicate", "shard")))
    with gathered(dict(model.named_parameters())) as whole:
        whole["weight"].sum().backward()
    for k, p in model.state_dict().items():
        torch.testing.assert_close(p.full_tensor(), before[k])


def test_a_parameter_that_is_one_piece_keeps_its_memory(ranks):
    ranks(one_piece)


def refused(rank):
    with pytest.raises(Refused, match="'weight' is not sharded"), gathered({"weight": torch.ones(2)}):
        pass


def test_what_is_not_sharded_is_refused(ranks):
    ranks(refused)
