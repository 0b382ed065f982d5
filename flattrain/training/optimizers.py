"""TorchOpt's functional optimizers, with their traps disarmed in one place.

- `update` and `apply_updates` mutate by default: `inplace=False` always.
- sgd's momentum keeps "is this the first call" in a closure, so an optimizer object that is built anew on
  resume would forget to multiply the restored momentum: the flag is spent on a step of zeros at once.
- `dampening` is not offered, because with it the first call is a different formula.
- Adam's bias correction is float32 whatever the parameters are (parity with torch.optim to 1e-4).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flattrain.ranges import Fraction, NonNegative, Positive, checked
from flattrain.types import Params

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the compiled extension does not load; the Python path is used
    import torchopt


class Optimizer(NamedTuple):
    """`init(params) -> state`, `update(grads, state, params) -> (params, state)`, both pure.

    `pack` and `unpack` turn a state into a flat list of tensors and back, for checkpoints.
    """

    init: Callable[[Params], Any]
    update: Callable[[Params, Any, Params], tuple[Params, Any]]
    pack: Callable[[Any], list[Tensor]]
    unpack: Callable[[list[Tensor], Params], Any]


Build = Callable[[], Optimizer]


def _pure(transformation: Any) -> Optimizer:
    def update(grads: Params, state: Any, params: Params) -> tuple[Params, Any]:
        updates, state = transformation.update(grads, state, params=params, inplace=False)
        return torchopt.apply_updates(params, updates, inplace=False), state

    def pack(state: Any) -> list[Tensor]:
        return [leaf for leaf in torchopt.pytree.tree_leaves(state) if isinstance(leaf, Tensor)]

    def unpack(saved: list[Tensor], params: Params) -> Any:
        leaves, structure = torchopt.pytree.tree_flatten(transformation.init(params))
        rest = iter(saved)
        return torchopt.pytree.tree_unflatten(
            structure, [next(rest) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        )

    one = {"w": torch.zeros(1)}
    update(one, transformation.init(one), one)  # spend the first-call flag
    return Optimizer(transformation.init, update, pack, unpack)


@checked
def sgd(*, lr: Positive = 0.1, momentum: Fraction = 0.0, weight_decay: NonNegative = 0.0) -> Build:
    """θ ← θ − lr·v, v ← momentum·v + g + weight_decay·θ."""
    return lambda: _pure(torchopt.sgd(lr, momentum=momentum, weight_decay=weight_decay))


@checked
def adam(*, lr: Positive = 1e-3, weight_decay: NonNegative = 0.0) -> Build:
    """Adam (Kingma & Ba 2015), β = (0.9, 0.999); weight decay joins the gradient (L2)."""
    return lambda: _pure(torchopt.adam(lr, weight_decay=weight_decay))


@checked
def adamw(*, lr: Positive = 1e-3, weight_decay: NonNegative = 1e-2) -> Build:
    """AdamW (Loshchilov & Hutter 2019), β = (0.9, 0.999); weight decay is decoupled."""
    return lambda: _pure(torchopt.adamw(lr, weight_decay=weight_decay))
