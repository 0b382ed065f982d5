"""FSDP2: gradients of penalties, products with the Hessian and whole trainings are those of one process."""

from __future__ import annotations

import copy

import pytest
import torch
from oracles import data, small_net
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.func import grad

from flattrain.core import trees
from flattrain.core.losses import cross_entropy, recognise
from flattrain.core.probes import draw, stream
from flattrain.measures.gradient_norm import squared_gradient_norm
from flattrain.measures.hessian_trace import hessian_trace
from flattrain.measures.relative_flatness import relative_flatness
from flattrain.measures.soft_rank import soft_rank
from flattrain.ranges import Refused
from flattrain.training.objective import Penalty, build
from flattrain.training.ranks import joined
from flattrain.training.sharded import gradient, product, value
from flattrain.types import Batch

LINE = {"rtol": 1e-10, "atol": 1e-12}
COUNT = 13


def setting(penalties):
    """A sharded model and its objective of this process's share; the same of one process."""
    net, (x, y) = small_net(), data(n=COUNT)
    params = {k: p.detach() for k, p in net.named_parameters()}
    whole = build(net, cross_entropy, penalties)
    noise = draw(whole.draws(whole.see(x, y)), stream(1), torch.float64)
    model, skeleton = copy.deepcopy(net), copy.deepcopy(net).to("meta")
    mesh = init_device_mesh("cpu", (2,))
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    mine = joined().share(COUNT)
    return (
        build(skeleton, cross_entropy, penalties, ranks=joined()),
        dict(model.named_parameters()),
        Batch(x[mine], y[mine], noise),
        whole,
        params,
        Batch(x, y, noise),
    )


def close(sharded, wanted):
    for k, v in wanted.items():
        assert isinstance(sharded[k], DTensor) and len(sharded[k].to_local()) < len(v)
        torch.testing.assert_close(sharded[k].full_tensor().detach(), v, **LINE)


def penalties_of():
    return [
        Penalty(relative_flatness(layer="head"), 0.1),
        Penalty(soft_rank(), 0.2),
        Penalty(hessian_trace(probes=1), 0.1),
        Penalty(squared_gradient_norm(), 0.3),
    ]


def first_and_second(rank):
    shared, params, mine, alone, whole, batch = setting(penalties_of())
    live = {k: p.clone().requires_grad_() for k, p in whole.items()}
    wanted, found = alone.value()(live, batch)[0], value(shared, params, mine)
    torch.testing.assert_close(found.detach(), wanted.detach(), **LINE)
    close(gradient(shared, params, mine), alone.gradient()(whole, batch)[0])
    v = {k: torch.randn(p.shape, generator=stream(k)) for k, p in whole.items()}
    split = {k: distribute_tensor(v[k], p.device_mesh, p.placements) for k, p in params.items()}
    wanted = grad(lambda at: trees.dot(alone.gradient()(at, batch)[0], v))(whole)
    close(product(shared, params, split, mine), wanted)


def test_gradients_and_products_are_those_of_one_process(ranks):
    ranks(first_and_second)


def flat(rank):
    layer, x = nn.Linear(4, 2), torch.randn(6, 4)
    skeleton = copy.deepcopy(layer).to("meta")
    fully_shard(layer, mesh=init_device_mesh("cpu", (2,)))
    params = dict(layer.named_parameters())
    linear = recognise(lambda outputs, y: (outputs.sum(1) * y).mean())
    found = product(build(skeleton, linear, [], ranks=joined()), params, params, Batch(x, x[:, 0], {}))
    for k, h in found.items():
        assert h.placements == params[k].placements and not h.full_tensor().any()


def test_where_nothing_curves_the_product_is_zero(ranks):
    ranks(flat)


def steps(rank):
    shared, params, mine, alone, whole, batch = setting(penalties_of())
    optimizer = torch.optim.SGD(params.values(), lr=0.1, momentum=0.9)
    velocity = {k: torch.zeros_like(p) for k, p in whole.items()}
    for _ in range(3):
        for k, g in gradient(shared, params, mine).items():
            params[k].grad = g
        optimizer.step()
        g, _ = alone.gradient()(whole, batch)
        velocity = {k: 0.9 * velocity[k] + g[k] for k in g}
        whole = trees.axpy(-0.1, velocity, whole)
    close(params, whole)


def test_training_on_shards_is_training_on_the_whole(ranks):
    ranks(steps)


def refusals(rank):
    shared, params, mine, alone, whole, _ = setting([])
    with pytest.raises(Refused, match=r"build the objective with ranks=joined\(\)"):
        gradient(alone, params, mine)
    with pytest.raises(Refused, match="is not sharded; call fully_shard"):
        gradient(shared, whole, mine)
    distributed.barrier()


def test_what_is_not_sharded_is_refused(ranks):
    ranks(refusals)
