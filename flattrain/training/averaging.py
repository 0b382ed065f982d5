"""Averages of the weights along the way; measures are then taken at the average.

    m_t = m_{t−1} + s_t (θ_t − m_{t−1}),   m_0 = θ_0

    ema   s_t = 1 − decay
    swa   s_t = 1 up to `start`, then 1/(k + 1) at start + k · every, else 0      Izmailov et al. 2018

so swa's average is that of θ at start, start + every, …, and up to `start` it is θ itself. Training does not
feel the average. It is kept in the state's memory, seed by seed, so a resumed run goes on with it.

Statistics of normalisations must be those of the averaged weights (Izmailov et al. recompute them). Here none
are kept: the stacked trainer refuses layers with running statistics, and the two-layer nets normalise by the
example or by the training set as it is at the weights given. A norm that is held while training (`project`)
is not restored: the average of points on a sphere lies inside it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flattrain.ranges import Count, Fraction, Steps, checked
from flattrain.training.trainer import State
from flattrain.types import Memory, Params

Average = Callable[[int], float]  # steps taken -> s_t

OWN = "average:"  # of what the state remembers


@checked
def ema(*, decay: Fraction = 0.999) -> Average:
    """An exponential moving average; it begins at the starting point and forgets it like decayᵗ."""
    return lambda step: 1 - decay


@checked
def swa(*, start: Steps, every: Count = 1) -> Average:
    """Stochastic weight averaging: the mean of the weights at every so many steps from `start` on."""

    def share(step: int) -> float:
        if step <= start:
            return 1.0
        number, between = divmod(step - start, every)
        return 0.0 if between else 1 / (number + 1)

    return share


def begin(params: Params) -> Memory:
    """The average before the first step."""
    return {OWN + name: value.clone() for name, value in params.items()}


def move(memory: Memory, params: Params, share: Tensor) -> Memory:
    """The average after a step to `params`; the rest of the memory as it is."""
    return memory | {OWN + k: torch.lerp(memory[OWN + k], v, share) for k, v in params.items()}


def averaged(state: State) -> Params:
    """The weights to measure: the average where one is kept, else the weights themselves."""
    return {name: state.memory.get(OWN + name, value) for name, value in state.params.items()}
