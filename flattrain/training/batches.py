"""What each step sees of chance, as a function of (seed, step): which examples, and which noise.

Drawn in blocks of steps, each block from a stream of its own, so any step can be reached without
replaying the others and the fused and the stacked trainer see the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from flattrain.core.probes import draw, stream
from flattrain.types import Draw

BLOCK = 10_000
NOISE_NUMBERS = 2**20  # as many random numbers in one block of noise, at most


def indices(seed: int, examples: int, batch_size: int, start: int, stop: int) -> Tensor:
    """(stop − start, batch_size) example indices of steps start … stop − 1, all within one block.

    Independent uniform draws with replacement; a batch of the whole training set is every example.
    """
    if batch_size == examples:
        return torch.arange(examples).expand(stop - start, examples)
    block, first = divmod(start, BLOCK)
    drawn = torch.randint(examples, (BLOCK, batch_size), generator=stream(seed, "batches", block))
    return drawn[first : first + stop - start]


def next_stop(step: int, target: int) -> int:
    """The farthest step towards `target` within the block of `step`."""
    return min(target, (step // BLOCK + 1) * BLOCK)


def noise_of(
    wanted: dict[str, Draw], seed: int, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> Callable[[int], dict[str, Tensor]]:
    """step ↦ the tensors that are wanted at that step, drawn on the CPU and moved a block at a time."""
    numbers = sum(math.prod(want.shape) for want in wanted.values())
    length = min(BLOCK, max(1, NOISE_NUMBERS // max(1, numbers)))
    longer = {k: want._replace(shape=(length, *want.shape)) for k, want in wanted.items()}

    @lru_cache(maxsize=1)
    def block(index: int) -> dict[str, Tensor]:
        drawn = draw(longer, stream(seed, "noise", index), dtype)
        return {name: values.to(device) for name, values in drawn.items()}

    def at(step: int) -> dict[str, Tensor]:
        index, offset = divmod(step, length)
        return {name: values[offset] for name, values in block(index).items()} if wanted else {}

    return at
