"""Labels 0 and 1 of the logistic model on the cube {±1}ᵈ, whose population is known (`core.logistic_cube`).

For the loss `binary_cross_entropy` and the model `linear`, which is then well specified.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flattrain.core import logistic_cube as cube
from flattrain.core.probes import stream
from flattrain.problems.split import DataSet, Split
from flattrain.ranges import Count, checked


@checked
def logistic_cube(*, dim: Count = 10, train: Count = 400, test: Count = 2000) -> DataSet:
    """Independent points of the cube with their labels; a smaller training set begins a larger one."""
    corners, theta = cube.points(dim), cube.truth(dim)

    def split(seed: int) -> Split:
        train_x, train_y = _drawn(corners, theta, train, seed, "train")
        return Split(train_x, train_y, *_drawn(corners, theta, test, seed, "test"), 1)

    return split


def _drawn(corners: Tensor, theta: Tensor, n: int, seed: int, part: str) -> tuple[Tensor, Tensor]:
    drawn = torch.rand(n, 2, generator=stream(seed, "logistic_cube", part), dtype=torch.float64)
    x = corners[(drawn[:, 0] * len(corners)).long()]
    return x, (drawn[:, 1] < (x @ theta).sigmoid()).to(x.dtype)
