"""The contract of a trainer, and the state that travels through the loop and into checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from flattrain.types import Params


class State(NamedTuple):
    """Parameters stacked over seeds (S, ...), the optimizer's tensors, and the number of steps taken."""

    step: int
    params: Params
    optimizer: list[Tensor]


@dataclass(frozen=True)
class Trainer:
    """`advance(state, target)` takes steps towards `target` and returns when it likes, at most there.

    `backend` says in words which path ran.
    """

    init: Callable[[], State]
    advance: Callable[[State, int], State]
    backend: str
