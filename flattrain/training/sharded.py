"""Objectives of models whose parameters are sharded by FSDP2, with exact derivatives of any order.

    skeleton = copy.deepcopy(model).to("meta")            # before fully_shard: the layers, without numbers
    fully_shard(model)
    objective = build(skeleton, cross_entropy, penalties, ranks=joined())
    gradient(objective, dict(model.named_parameters()), batch)   # sharded like the parameters
    product(objective, parameters, direction, batch)             # H v, the same

Each parameter is gathered on the graph and whole only while an operation reads it (`training.gathered`), in
both passes and in those through them. That takes the place of `core.collective.spread`, so everything that is
said there holds. A model with buffers gives them, as whole tensors, since the skeleton's hold no numbers.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor

from flattrain.ranges import Refused
from flattrain.training.gathered import gathered
from flattrain.training.objective import Objective
from flattrain.types import Batch, Params


def value(objective: Objective, params: Params, batch: Batch, buffers: Params | None = None) -> Tensor:
    """The objective over the shares of all processes, off the graph; the same number everywhere."""
    with _whole(objective, params) as whole:
        return _total(objective, whole, batch, buffers).detach()


def gradient(objective: Objective, params: Params, batch: Batch, buffers: Params | None = None) -> Params:
    """∇ of `value`, sharded like the parameters."""
    with _whole(objective, params) as whole:
        return _slopes(_total(objective, whole, batch, buffers), params, create=False)


def product(
    objective: Objective, params: Params, direction: Params, batch: Batch, buffers: Params | None = None
) -> Params:
    """H v of `value`, for a direction v sharded like the parameters."""
    with _whole(objective, params) as whole:
        slopes = _slopes(_total(objective, whole, batch, buffers), params, create=True)
        found = torch.autograd.grad(
            list(slopes.values()), list(params.values()), list(direction.values()), materialize_grads=True
        )
    return dict(zip(params, found, strict=True))


def _whole(objective: Objective, params: Params) -> AbstractContextManager[Params]:
    if not objective.ranks.several:
        raise Refused("the parameters are sharded: build the objective with ranks=joined()")
    return gathered(params)


def _total(objective: Objective, whole: Params, batch: Batch, buffers: Params | None) -> Tensor:
    return objective.total(objective.see(batch.x, batch.y, whole, buffers), batch.noise, batch)[0]


def _slopes(total: Tensor, params: Params, create: bool) -> Params:
    found = torch.autograd.grad(total, list(params.values()), create_graph=create, materialize_grads=True)
    return dict(zip(params, found, strict=True))
