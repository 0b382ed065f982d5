"""Sums over the processes of one model, differentiable to any order, and stacked like any other operation.

What is the same on all processes (parameters, a reduced statistic, a loss) and what each has its own of (the
activations of its share of the batch) are two kinds of value, and two operations lead from one to the other:

    spread   x ↦ (x, …, x)           from the same everywhere to each its own
    total    (x_1, …, x_W) ↦ Σ x_r   and back

Each is the other's transpose, and that is how they are differentiated. So if a function goes from parameters
through `spread`, then each process's examples, then `total`, to a number, then its gradient, the products
with its Hessian and all further derivatives are those of the number, on every process and to the same bits.
Averaging local gradients instead is right for a mean loss alone, and wrong for whatever follows a non-linear
`reduce`.

All processes must call the same functions in the same order. All tensors of a call travel as one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed
from torch.autograd import Function

from flattrain.types import Params


def spread(tree: Params) -> Params:
    """The same values as each process's own; the gradient is summed over the processes."""
    return dict(zip(tree, _Spread.apply(*tree.values()), strict=True)) if tree else {}


def total(tree: Params) -> Params:
    """Σ over the processes, entry by entry; the gradient is the same for all summands."""
    return dict(zip(tree, _Total.apply(*tree.values()), strict=True)) if tree else {}


class _Spread(Function):
    generate_vmap_rule = False

    @staticmethod
    def forward(*tensors: Tensor) -> Any:
        return tuple(t.clone() for t in tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None: ...

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        return _Total.apply(*cotangents)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Any:
        return tuple(t.clone() for t in tangents)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *tensors: Tensor) -> Any:
        return _Spread.apply(*tensors), in_dims


class _Total(Function):
    generate_vmap_rule = False

    @staticmethod
    def forward(*tensors: Tensor) -> Any:
        return summed(tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None: ...

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        return _Spread.apply(*cotangents)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Any:
        return summed(tangents)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *tensors: Tensor) -> Any:
        return _Total.apply(*tensors), in_dims


def summed(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Σ over the processes, with one message for each dtype; not differentiable."""
    out = list(tensors)
    for dtype in dict.fromkeys(t.dtype for t in tensors):
        chosen = [k for k, t in enumerate(tensors) if t.dtype == dtype]
        flat = torch.cat([tensors[k].reshape(-1) for k in chosen])
        distributed.all_reduce(flat)
        parts = flat.split([tensors[k].numel() for k in chosen])
        for k, part in zip(chosen, parts, strict=True):
            out[k] = part.reshape(tensors[k].shape)
    return tuple(out)
