"""Seeds whose weights are no longer finite: when each of them was lost, and no more steps once all are.

A loss that is not finite has a gradient that is not, so the weights say it one step later at most. The other
seeds of the stack go on; none of their numbers depends on a lost one. The step is exact: the steps since the
last look are taken again by halves, and are the same again.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from flattrain.training.trainer import State, Trainer

LOST = "divergence.step"  # in a state's memory: the step after which each seed was lost, 0 for the others


def lost(state: State) -> dict[int, int]:
    """Place in the stack -> the step after which its weights were not finite."""
    found = state.memory.get(LOST)
    return {} if found is None else {k: int(v) for k, v in enumerate(found) if v}


def watched(trainer: Trainer) -> Trainer:
    """The same trainer, which remembers the seeds that it loses and stops when none is left."""

    def advance(state: State, target: int) -> State:
        memory = dict(state.memory)
        steps = memory.pop(LOST, None)
        if steps is not None and bool(steps.all()):
            return state._replace(step=target)
        before = state._replace(memory=memory)
        after = trainer.advance(before, target)
        fresh = ~_finite(after) if steps is None else ~_finite(after) & (steps == 0)
        if bool(fresh.any()):
            steps = torch.zeros(len(fresh), dtype=torch.int64) if steps is None else steps.clone()
            for k in fresh.nonzero().flatten().tolist():
                steps[k] = _first(trainer, before, after.step, k)
        return after if steps is None else after._replace(memory={**after.memory, LOST: steps})

    return dataclasses.replace(trainer, advance=advance)


def _finite(state: State) -> Tensor:
    """(seeds,) whether all weights of a seed are finite."""
    return torch.stack([v.isfinite().view(len(v), -1).all(1) for v in state.params.values()]).all(0).cpu()


def _first(trainer: Trainer, good: State, bad: int, seed: int) -> int:
    """The first step in (good.step, bad] after which the seed's weights are not finite."""
    while bad - good.step > 1:
        middle, state = (good.step + bad) // 2, good
        while state.step < middle:
            state = trainer.advance(state, middle)
        if bool(_finite(state)[seed]):
            good = state
        else:
            bad = middle
    return bad
