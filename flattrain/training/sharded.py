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

from torch import Tensor

from flattrain.ranges import Refused
from flattrain.training.gathered import gathered
from flattrain.training.objective import Objective
from flattrain.training.scattered import scattered_gradient
from flattrain.types import Batch, Params


def value(objective: Objective, params: Params, batch: Batch, buffers: Params | None = None) -> Tensor:
    """The objective over the shares of all processes, off the graph; the same number everywhere."""
    with _whole(objective, params) as whole:
        return _total(objective, whole, batch, buffers).detach()


def gradient(objective: Objective, params: Params, batch: Batch, buffers: Params | None = None) -> Params:
    """∇ of `value`, sharded like the parameters."""
    with _whole(objective, params) as whole:
        total = _total(objective, whole, batch, buffers)
        return scattered_gradient([total], whole, params)


def product(
    objective: Objective, params: Params, direction: Params, batch: Batch, buffers: Params | None = None
) -> Params:
    """H v of `value`, for a direction v sharded like the parameters."""
    with _whole(objective, params) as whole:
        total = _total(objective, whole, batch, buffers)
        slopes = scattered_gradient([total], whole, params, create_graph=True)
        curved = {name: slope for name, slope in slopes.items() if slope.requires_grad}
        return scattered_gradient(list(curved.values()), whole, params, [direction[k] for k in curved])


def _whole(objective: Objective, params: Params) -> AbstractContextManager[Params]:
    if not objective.ranks.several:
        raise Refused("the parameters are sharded: build the objective with ranks=joined()")
    return gathered(params)


def _total(objective: Objective, whole: Params, batch: Batch, buffers: Params | None) -> Tensor:
    return objective.total(objective.see(batch.x, batch.y, whole, buffers), batch.noise, batch)[0]
