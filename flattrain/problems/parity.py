"""Sparse parity P_xor: x uniform on {−1, 1}ᵈ, y = x₁ x₂ (Wen, Li & Ma 2023, section 2)."""

from __future__ import annotations

import torch
from torch import Tensor

from flattrain.core.probes import stream
from flattrain.problems.split import DataSet, Split
from flattrain.ranges import Count, Refused, Steps, checked


@checked
def parity(*, dim: Count = 30, train: Count = 100, test: Count = 2000, validation: Steps = 0) -> DataSet:
    """`train`, `test` and `validation` independent points per seed.

    The training set of n points is a prefix of that of n' > n points, and the test set does not depend
    on n, so a sweep over n is paired within a seed.
    """
    if dim < 2:
        raise Refused(f"parity: dim must be >= 2, got {dim}: the label is x1 * x2")

    def split(seed: int) -> Split:
        train_x, test_x = (_cube(n, dim, seed, part) for n, part in ((train, "train"), (test, "test")))
        parts = Split(train_x, _label(train_x), test_x, _label(test_x), 1)
        if not validation:
            return parts
        x = _cube(validation, dim, seed, "validation")
        return parts._replace(validation_x=x, validation_y=_label(x))

    return split


def _cube(n: int, dim: int, seed: int, part: str) -> Tensor:
    bits = torch.randint(0, 2, (n, dim), generator=stream(seed, "parity", part))
    return bits.to(torch.float32) * 2 - 1


def _label(x: Tensor) -> Tensor:
    return x[:, 0] * x[:, 1]
