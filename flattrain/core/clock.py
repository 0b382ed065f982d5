"""Whether a step is early or late, as a number to multiply with.

Steps are counted from 0. A compiled step is one graph for all steps and cannot branch on their number
(`training.compiled`): there the batch carries it as a tensor, and what has ended is computed and multiplied
by 0.
"""

from __future__ import annotations

from torch import Tensor

from flattrain.types import Batch


def since(batch: Batch, start: int) -> float | Tensor:
    """1 from step `start` on, 0 before."""
    if batch.clock:
        return (batch.clock[0] >= start).to(batch.clock[0].dtype)
    return float(batch.moment.step >= start)
