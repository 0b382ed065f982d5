"""The contracts of this ring: a data set gives a `Split` per seed, a model a network and its start."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Generator, Tensor, nn

from flattrain.types import Params


class Split(NamedTuple):
    """Training and test examples of one seed. `outputs` is the number of outputs a network needs.

    Validation examples, where a data set was asked for them, are in neither of the two: settings are chosen
    on them (`lab.tuning`), so that the test examples are seen by the final runs alone.
    """

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    outputs: int
    validation_x: Tensor | None = None
    validation_y: Tensor | None = None

    def each(self, change: Callable[[Tensor], Tensor]) -> Split:
        """`change` on every tensor."""
        changed = {k: change(v) for k, v in self._asdict().items() if isinstance(v, Tensor)}
        return Split(**{**self._asdict(), **changed})


DataSet = Callable[[int], Split]


class Model(NamedTuple):
    """`build(split)` gives the module, `start(module, split, generator)` its parameters,

    `buffers(module, split)` whatever else of the split the forward pass sees; `project(module, params)` is
    applied after every step, for a model whose parameters are confined to a set.
    """

    build: Callable[[Split], nn.Module]
    start: Callable[[nn.Module, Split, Generator], Params]
    buffers: Callable[[nn.Module, Split], Params] = lambda module, split: dict(module.named_buffers())
    project: Callable[[nn.Module, Params], Params] = lambda module, params: params
