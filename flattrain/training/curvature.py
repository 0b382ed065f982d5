"""The curvature of your own model as an operator: the Hessian, the Gauss–Newton matrix, a Fisher matrix.

    operator = curvature(model, F.cross_entropy, loader, kind="hessian")
    largest(operator, stream(0)).value

The model is in eval mode within each product and left as it was found, whatever happens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from torch import Generator, Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from flattrain.core.fisher import fisher, gauss_newton
from flattrain.core.functional import Forward, call, outputs_at
from flattrain.core.losses import recognise
from flattrain.core.operators import Batches, hessian
from flattrain.core.untouched import untouched
from flattrain.core.weights import mass
from flattrain.ranges import Refused, checked
from flattrain.types import Loss, Operator, Params


@checked
def curvature(
    model: nn.Module,
    loss_fn: Callable[[Tensor, Tensor], Tensor] | Loss,
    batches: Batches,
    *,
    kind: Literal["hessian", "gauss_newton", "type-2", "mc", "empirical"] = "hessian",
    forward: Forward = call,
    generator: Generator | None = None,
) -> Operator:
    """The operator over all trainable parameters, at their values now, on all examples of `batches`.

    batches : (x, y) pairs that can be read again and again in the same order, e.g. a DataLoader without
              shuffling. Tied parameters count once, frozen ones are left out.
    kind    : "type-2", "mc" and "empirical" are Fisher matrices, see `core.fisher`; "mc" draws its labels
              from `generator`.
    """
    if isinstance(model, DistributedDataParallel | DataParallel):
        raise Refused(
            f"curvature: {type(model).__name__} averages gradients, not products; pass model.module, and "
            "core.operators.averaged(operator, examples) for the average over processes"
        )
    if any(hasattr(p, "full_tensor") for p in model.parameters()):
        raise Refused("curvature: the parameters are sharded; pass a whole model with their full_tensor()")
    criterion = recognise(loss_fn)
    params: Params = {k: p.detach().clone() for k, p in model.named_parameters() if p.requires_grad}
    buffers: Params = {k: b.detach().clone() for k, b in model.named_buffers()}

    def run(live: Params, x: Any) -> Tensor:
        return outputs_at(model, forward, live, {k: b.clone() for k, b in buffers.items()}, x)

    with untouched(model):
        if kind == "hessian":
            weigh = partial(mass, criterion)
            found = hessian(lambda live, x, y: criterion.mean(run(live, x), y), params, batches, weigh)
        elif kind == "gauss_newton":
            found = gauss_newton(run, criterion, params, batches)
        else:
            found = fisher(run, criterion, params, batches, kind=kind, generator=generator)

    def matvec(vector: Tensor) -> Tensor:
        with untouched(model):
            model.eval()
            return found(vector)

    return replace(found, matvec=matvec)
