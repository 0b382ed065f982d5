"""The contract of a trainer, and the state that travels through the loop and into checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from flattrain.types import Memory, Params


class State(NamedTuple):
    """After `step` steps: parameters and rule's memory, stacked over seeds, and the optimizer's tensors."""

    step: int
    params: Params
    optimizer: list[Tensor]
    memory: Memory = {}  # noqa: RUF012  (never written to; NamedTuple has no factory)


@dataclass(frozen=True)
class Trainer:
    """`advance(state, target)` takes steps towards `target` and returns when it likes, at most there.

    `backend` says in words which path ran.
    """

    init: Callable[[], State]
    advance: Callable[[State, int], State]
    backend: str
