"""Objectives of models whose parameters are sharded by FSDP2, with exact derivatives of any order.

    skeleton = copy.deepcopy(model).to("meta")            # before fully_shard: the layers, without numbers
    fully_shard(model)
    objective = build(skeleton, cross_entropy, penalties, ranks=joined())
    gradient(objective, dict(model.named_parameters()), batch)   # sharded like the parameters
    product(objective, parameters, direction, batch)             # H v, the same

FSDP2's hooks free a layer's weights after use and cannot be differentiated twice. Here a parameter is
gathered as an operation of the graph: forward an all-gather, backward a reduce-scatter of the sum, and the
transpose of that again a gather. It takes the place of `core.collective.spread`, so everything that is said
there holds. A model with buffers gives them, as whole tensors, since the skeleton's hold no numbers.

Parameters, gradients and the optimizer's state stay sharded. The gathered weights of all layers, and the
activations of this process's share, are in memory together during a step: for models whose optimizer and
gradients do not fit into one device, but whose weights, once, do.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flattrain.ranges import Refused
from flattrain.training.objective import Objective
from flattrain.types import Batch, Params


def gathered(params: Params) -> Params:
    """The whole of each sharded parameter, on the graph; the gradient is summed and sharded again."""
    from torch.distributed.tensor import Partial  # costs half a second to import

    out = {}
    for name, p in params.items():
        whole: Any = getattr(p, "full_tensor", None)
        if whole is None:
            raise Refused(f"parameter {name!r} is not sharded; call fully_shard on the model that holds it")
        mesh: Any = p.device_mesh  # type: ignore[attr-defined]
        out[name] = whole(grad_placements=[Partial("sum")] * mesh.ndim)
    return out


def value(objective: Objective, params: Params, batch: Batch, buffers: Params | None = None) -> Tensor:
    """The objective over the shares of all processes; the same number everywhere."""
    _need_ranks(objective)
    seen = objective.see(batch.x, batch.y, gathered(params), buffers)
    return objective.total(seen, batch.noise)[0]


def gradient(objective: Objective, params: Params, batch: Batch, buffers: Params | None = None) -> Params:
    """∇ of `value`, sharded like the parameters."""
    return _slopes(objective, params, batch, buffers, create=False)


def product(
    objective: Objective, params: Params, direction: Params, batch: Batch, buffers: Params | None = None
) -> Params:
    """H v of `value`, for a direction v sharded like the parameters."""
    slopes = _slopes(objective, params, batch, buffers, create=True)
    found = torch.autograd.grad(
        list(slopes.values()), list(params.values()), list(direction.values()), materialize_grads=True
    )
    return dict(zip(params, found, strict=True))


def _slopes(
    objective: Objective, params: Params, batch: Batch, buffers: Params | None, create: bool
) -> Params:
    found = torch.autograd.grad(
        value(objective, params, batch, buffers),
        list(params.values()),
        create_graph=create,
        materialize_grads=True,
    )
    return dict(zip(params, found, strict=True))


def _need_ranks(objective: Objective) -> None:
    if not objective.ranks.several:
        raise Refused("the parameters are sharded: build the objective with ranks=joined()")
